# `make demo` and `make test` are the two commands of the README; everything else is for developers.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTOS := $(shell find protos -name '*.proto' | sort)

.PHONY: demo test clients test-clients check protos clean simulate

$(VENV)/.runtime: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(VENV)/.runtime $@

# Three nodes on localhost that can be pushed to. DEMO_ARGS="--ephemeral --base-port 9000" changes them.
demo: $(VENV)/.runtime
	$(BIN)/quorepo demo $(DEMO_ARGS)

# Installs what the tests need and passes them. TEST_ARGS="--slow" adds the long runs.
test: $(VENV)/.dev
	$(BIN)/python -m pytest $(TEST_ARGS)

# The clients that the tests drive beside git: go-git, JGit and grpcurl, where `go` or `mvn` can get them.
clients:
	tests/clients/install.sh

# Their tests, none of them skipped. `make test` runs them too, as far as the clients are there.
test-clients: $(VENV)/.dev clients
	QUOREPO_CLIENTS=required $(BIN)/python -m pytest tests/clients $(TEST_ARGS)

# Fresh schedules of the simulator on two cores (tests/simulation/README.md). SIMULATE_ARGS="--count 20000".
simulate: $(VENV)/.dev
	PYTHONPATH=tests $(BIN)/python -m simulation.run --processes 2 $(SIMULATE_ARGS)

# Exactly what CI runs before the tests: lint, types, style of the protos.
check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/buf lint

# Regenerates the committed stubs and the reference of the API from protos/.
protos: $(VENV)/.dev
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I protos \
	    --python_out=. --mypy_out=. --grpc_python_out=. --mypy_grpc_out=. $(PROTOS)
	$(BIN)/python -m quorepo.rpc.api_reference > docs/api-reference.md

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache

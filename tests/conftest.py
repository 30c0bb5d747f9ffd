"""Options of the whole test suite."""

from __future__ import annotations

import pytest
from hypothesis import settings

# The same examples in every run, so that a failure is one of the change. How long an example takes
# says nothing on a machine that others use too.
settings.register_profile("repeated", derandomize=True, deadline=None)
settings.register_profile("fresh", deadline=None)
settings.load_profile("repeated")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also long chaos and simulation runs")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="long: only with --slow")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)

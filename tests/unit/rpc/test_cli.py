"""The command line against a stub of the gRPC API: output, exit codes, and what is said on
failure."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import grpc
import pytest
from support.cli import TOKEN, Run, Stub

from quorepo.rpc.cli import main as cli_main
from quorepo.storage.errors import (
    AlreadyExists,
    NotFound,
    OutcomeUnknown,
    QuorepoError,
    Unauthenticated,
    Unavailable,
)


def test_status_as_json_has_nodes_and_groups_with_leaders_by_name(run: Run) -> None:
    result = run("status", "-o", "json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert set(document) == {"cluster_id", "answered_by", "level", "nodes", "groups"}
    assert (document["cluster_id"], document["answered_by"]) == ("c1", "n1")
    assert [node["name"] for node in document["nodes"]] == ["n1", "n2"]
    assert document["nodes"][0]["ready"]
    assert not document["nodes"][1]["reachable"]
    first, second = document["groups"]
    assert (first["group"], first["leader"]) == (1, "n1")
    assert (first["term"], first["commit_index"]) == (4, 17)
    replica = first["replicas"][0]
    assert (replica["node"], replica["role"], replica["applied_index"]) == ("n1", "leader", 17)
    assert second["leader"] is None


def test_status_as_a_table_names_what_is_wrong(run: Run) -> None:
    result = run("status")
    assert result.exit_code == 0
    assert "not reachable" in result.stdout
    assert "leader" in result.stdout
    assert "group 2: no leader" in result.stderr


@pytest.mark.parametrize("position", ["before", "after"])
def test_options_stand_before_or_after_the_subcommand(run: Run, stub: Stub, position: str) -> None:
    options = ["--endpoint", stub.address, "-o", "json"]
    arguments = [*options, "status"] if position == "before" else ["status", *options]
    result = run(*arguments, QUOREPO_ENDPOINT="127.0.0.1:1")
    assert result.exit_code == 0
    json.loads(result.stdout)


def test_the_token_may_come_from_a_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    assert run("status", "--token-file", str(path), QUOREPO_TOKEN="").exit_code == 0
    result = run("status", "--token-file", str(tmp_path / "absent"))
    assert result.exit_code == 2
    assert "cannot read the token file" in result.stderr


def test_without_a_token_nothing_is_tried(run: Run, stub: Stub) -> None:
    result = run("repo", "list", QUOREPO_TOKEN="")
    assert result.exit_code == 2
    assert "nothing was tried" in result.stderr
    assert "QUOREPO_TOKEN" in result.stderr
    assert stub.requests == []


def test_all_pages_of_a_listing_are_shown(run: Run) -> None:
    result = run("repo", "list", "-o", "json")
    assert [r["path"] for r in json.loads(result.stdout)] == ["team/r0", "team/r1", "team/r2"]
    table = run("repo", "list").stdout
    assert all(f"team/r{n}" in table for n in range(3))


def test_a_repository_is_created_shown_and_deleted(run: Run, stub: Stub) -> None:
    result = run("repo", "create", "team/r0", "--default-branch", "trunk")
    assert (result.exit_code, result.stdout) == (0, "created team/r0\n")
    assert stub.requests[-1].default_branch == b"trunk"
    assert uuid.UUID(stub.requests[-1].request_id)
    assert json.loads(run("repo", "info", "team/r0", "-o", "json").stdout)["revision"] == "1.0"
    assert "refs/heads/main" in run("repo", "info", "team/r0").stdout
    result = run("repo", "delete", "team/r0", "--yes")
    assert (result.exit_code, result.stdout) == (0, "deleted team/r0\n")


def test_deleting_asks_and_never_assumes(run: Run, stub: Stub) -> None:
    result = run("repo", "delete", "team/r0")
    assert result.exit_code == 5
    assert "nothing was changed" in result.stderr
    assert "quorepo repo delete team/r0 --yes" in result.stderr
    assert stub.requests == []


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (NotFound("repository 'x' does not exist"), 1, "does not exist; nothing was changed"),
        (AlreadyExists("'x' exists"), 1, "nothing was changed"),
        (Unauthenticated("unknown token"), 1, "--token-file"),
        (
            Unavailable("no leader", next_step="try again"),
            3,
            "nothing was changed\nnext: try again",
        ),
        (OutcomeUnknown("the outcome is not known"), 4, "--request-id"),
    ],
)
def test_each_failure_has_its_exit_code_and_words(
    run: Run, stub: Stub, error: QuorepoError, code: int, words: str
) -> None:
    stub.error = error
    result = run("repo", "create", "x", "--timeout", "1")
    assert result.exit_code == code
    assert words in result.stderr
    assert result.stdout == ""


def test_a_request_whose_outcome_is_unknown_can_be_repeated(run: Run, stub: Stub) -> None:
    stub.error = OutcomeUnknown("the outcome is not known")
    result = run("repo", "delete", "x", "--yes", "--timeout", "1")
    request_id = stub.requests[-1].request_id
    assert f"--request-id {request_id}" in result.stderr
    stub.error = None
    assert run("repo", "delete", "x", "--yes", "--request-id", request_id).exit_code == 0
    assert stub.requests[-1].request_id == request_id


def test_a_connection_that_breaks_off_is_unknown_only_for_changes(run: Run, stub: Stub) -> None:
    stub.code = grpc.StatusCode.UNAVAILABLE
    assert run("repo", "create", "x", "--timeout", "1").exit_code == 4
    result = run("repo", "info", "x", "--timeout", "1")
    assert result.exit_code == 3
    assert "nothing was changed" in result.stderr


def test_nobody_there_is_certain(run: Run) -> None:
    result = run("repo", "create", "x", "--endpoint", "127.0.0.1:1", "--timeout", "0.3")
    assert result.exit_code == 3
    assert "no node serves at 127.0.0.1:1; nothing was changed" in result.stderr
    assert "--endpoint" in result.stderr


def test_wrong_usage_is_code_2(run: Run) -> None:
    assert run("repo", "create").exit_code == 2
    assert run("nothing").exit_code == 2
    assert run("repo", "create", "x", "--request-id", "no-uuid").exit_code == 2


def test_version_and_serve_report_what_they_are_told(run: Run, tmp_path: Path) -> None:
    assert run("version").stdout.startswith("quorepo ")
    assert "python" in json.loads(run("version", "-o", "json").stdout)
    result = run("serve", "--config", str(tmp_path / "absent.toml"))
    assert result.exit_code == 78


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_main.root, "main", interrupted)
    with pytest.raises(SystemExit) as caught:
        cli_main.main()
    assert caught.value.code == 130

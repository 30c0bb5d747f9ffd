"""What holds for every command: formats, help, contexts, endpoints, questions, completion."""

from __future__ import annotations

import io
import json
import stat
import subprocess
import sys
from pathlib import Path

import click
import grpc
import pytest
import yaml
from support.cli import TOKEN, Run, Stub, all_commands, runner, serving
from support.peer_certificates import authority, now

from quorepo.cluster.peer.certificates import issue_certificate, node_dns_name
from quorepo.rpc.cli.confirm import confirm, confirm_by_name
from quorepo.rpc.cli.contexts import contexts_path
from quorepo.rpc.cli.failures import EXIT_CODES, Failure
from quorepo.rpc.cli.progress import progress
from quorepo.rpc.cli.reference import reference

# They run a node, print a script or speak git: no results to give a format to.
SHELLS = ("bash", "zsh", "fish")
WITHOUT_FORMAT = {"demo", "serve", "transfer", *(f"completion {shell}" for shell in SHELLS)}


def test_every_command_has_an_example_of_itself_in_its_help(run: Run) -> None:
    names = [name for name, _command in all_commands()]
    assert {"demo", "serve", "status", "version", "repo create", "repo list"} <= set(names)
    for name in names:
        result = run(*name.split(), "--help")
        assert result.exit_code == 0
        _, found, examples = result.stdout.partition("Example")
        assert found, f"{name}: no example"
        assert name.split()[-1] in examples, f"{name}: the example is of something else"


def test_every_command_with_results_prints_them_in_every_format() -> None:
    for name, command in all_commands():
        if isinstance(command, click.Group) or name in WITHOUT_FORMAT:
            continue
        output = next((p for p in command.params if p.name == "output"), None)
        assert output is not None, f"{name} has no -o"
        assert list(output.type.choices) == ["table", "json", "yaml"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("cluster", "health"),
        ("repo", "list"),
        ("repo", "info", "team/r0"),
        ("repo", "create", "team/r0"),
        ("repo", "delete", "team/r0", "--yes"),
        ("version",),
        ("context", "list"),
    ],
)
def test_yaml_and_json_are_the_same_document(run: Run, command: tuple[str, ...]) -> None:
    as_json, as_yaml = run(*command, "-o", "json"), run(*command, "-o", "yaml")
    assert as_json.exit_code == as_yaml.exit_code
    assert yaml.safe_load(as_yaml.stdout) == json.loads(as_json.stdout)
    assert run("-o", "yaml", *command).stdout == as_yaml.stdout


def test_nothing_is_coloured_where_nobody_looks(run: Run) -> None:
    for environment in ({"NO_COLOR": "1"}, {"NO_COLOR": None}):
        assert "\x1b" not in run("status", **environment).output


@pytest.mark.parametrize(
    ("typed", "meant"),
    [(("stauts",), "quorepo status"), (("repo", "crate"), "quorepo repo create")],
)
def test_an_unknown_command_is_answered_with_the_nearest(
    run: Run, typed: tuple[str, ...], meant: str
) -> None:
    result = run(*typed)
    assert result.exit_code == 2
    assert f"no command {typed[-1]!r}, nothing was tried; did you mean" in result.stderr
    assert meant in result.stderr.replace("root", "quorepo")


def test_the_help_names_every_exit_code(run: Run) -> None:
    text = run("--help").stdout
    for code, meaning in EXIT_CODES.items():
        assert f"{code:<4} {meaning}" in text


# ---- contexts


def add(run: Run, name: str, *endpoints: str, token_file: Path) -> None:
    options = [option for endpoint in endpoints for option in ("--endpoint", endpoint)]
    result = run("context", "add", name, *options, "--token-file", str(token_file))
    assert result.exit_code == 0, result.output


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return path


def bare(run: Run, *arguments: str, **environment: str | None) -> int:
    """The exit code without anything of the environment."""
    unset: dict[str, str | None] = {"QUOREPO_TOKEN": None, "QUOREPO_ENDPOINT": None}
    return run(*arguments, **{**unset, **environment}).exit_code


def test_a_context_is_all_that_a_command_needs(
    run: Run, stub: Stub, token_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    add(run, "test", stub.address, token_file=token_file)
    add(run, "gone", "127.0.0.1:1", token_file=token_file)
    listed = json.loads(run("context", "list", "-o", "json").stdout)
    assert [(entry["name"], entry["current"]) for entry in listed] == [
        ("gone", False),
        ("test", True),
    ]
    assert bare(run, "status") == 0
    assert bare(run, "status", "--context", "gone", "--timeout", "0.3") == 3
    assert bare(run, "--context", "gone", "status", "--timeout", "0.3") == 3
    assert bare(run, "status", "--timeout", "0.3", QUOREPO_CONTEXT="gone") == 3
    assert bare(run, "status", "--context", "test", QUOREPO_CONTEXT="gone") == 0
    assert run("context", "use", "gone").exit_code == 0
    assert bare(run, "status", "--timeout", "0.3") == 3
    result = run("context", "remove", "gone")
    assert result.exit_code == 0
    assert "quorepo context use" in result.stderr
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    assert TOKEN not in contexts_path().read_text()
    assert stat.S_IMODE(contexts_path().stat().st_mode) == 0o600
    assert stat.S_IMODE(contexts_path().parent.stat().st_mode) == 0o700


def test_the_token_of_a_context_goes_to_its_own_nodes_only(
    run: Run, stub: Stub, token_file: Path
) -> None:
    add(run, "prod", "127.0.0.1:1", token_file=token_file)
    stub.requests.clear()
    assert bare(run, "status", "--endpoint", stub.address) == 2
    assert bare(run, "status", QUOREPO_ENDPOINT=stub.address) == 2
    assert stub.requests == []
    assert bare(run, "status", "--endpoint", stub.address, "--context", "prod") == 0


def test_a_context_that_is_not_there_is_told_with_the_nearest(run: Run, token_file: Path) -> None:
    add(run, "production", "127.0.0.1:1", token_file=token_file)
    result = run("--context", "prodution", "status")
    assert result.exit_code == 2
    assert "did you mean 'production'?" in result.stderr
    assert run("context", "add", "x", "--endpoint", "no-port").exit_code == 2
    assert run("context", "add", "../x", "--endpoint", "h:1").exit_code == 2


def test_a_damaged_file_of_contexts_is_said_to_be_so(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "home" / "quorepo" / "contexts.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    result = run("context", "list")
    assert result.exit_code == 2
    assert str(path) in result.stderr
    assert "nothing was tried" in result.stderr
    assert run("status").exit_code == 0  # it has an endpoint and a token without it


# ---- endpoints


def test_endpoints_are_tried_in_turn(run: Run, stub: Stub) -> None:
    result = run("status", "--endpoint", "127.0.0.1:1", "--endpoint", stub.address)
    assert result.exit_code == 0, result.output
    assert run("status", QUOREPO_ENDPOINT=f"127.0.0.1:1, {stub.address}").exit_code == 0
    result = run("status", "--endpoint", "127.0.0.1:1", "--endpoint", "127.0.0.1:2")
    assert result.exit_code == 3
    assert "no node answers at 127.0.0.1:1, 127.0.0.1:2; nothing was changed" in result.stderr


def test_a_node_that_serves_is_asked_before_one_that_does_not(run: Run, stub: Stub) -> None:
    with serving() as other:
        other.reset()
        endpoints = ("--endpoint", stub.address, "--endpoint", other.address)
        stub.serves(False)
        assert run("repo", "list", *endpoints).exit_code == 0
        assert (len(stub.requests), len(other.requests) > 0) == (0, True)
        other.serves(False)
        assert run("status", *endpoints).exit_code == 0
        assert len(stub.requests) == 1


def test_another_machine_gets_no_token_without_tls(run: Run) -> None:
    result = run("status", "--endpoint", "git1.example.net:7421")
    assert result.exit_code == 2
    assert "--ca-file" in result.stderr


def test_tls_with_the_ca_of_the_cluster(tmp_path: Path) -> None:
    ca = authority()
    issued = issue_certificate(ca, "n1", now())
    credentials = grpc.ssl_server_credentials([(issued.key_pem, issued.certificate_pem)])
    (tmp_path / "ca.pem").write_bytes(ca.certificate_pem)
    with serving(credentials) as stub:
        stub.reset()
        run = runner(tmp_path / "home", stub.address)
        result = run("status", "--ca-file", str(tmp_path / "ca.pem"), "--timeout", "1")
        # The certificate is of n1.node.quorepo, not of 127.0.0.1: refused.
        assert result.exit_code == 3
        assert "over TLS" in result.stderr
        assert node_dns_name("n1") == "n1.node.quorepo"


# ---- questions


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_dangerous_question_is_answered_by_the_name_of_the_cluster_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refusal(*, force: bool, typed: str | None) -> str:
        with pytest.raises(Failure) as caught:
            confirm_by_name("the quorum is lost", "blue", force=force, typed=typed, again="do it")
        assert caught.value.exit_code == 5
        assert "nothing was changed" in caught.value.message
        return caught.value.next_step

    assert refusal(force=False, typed="blue") == "do it"
    assert refusal(force=True, typed="green") == "quorepo status shows the name"
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert refusal(force=True, typed=None) == "do it --cluster-name blue"
    confirm_by_name("the quorum is lost", "blue", force=True, typed="blue", again="")
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(click, "prompt", lambda *_, **__: "blue")
    confirm_by_name("the quorum is lost", "blue", force=True, typed=None, again="")


def test_a_no_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(click, "confirm", lambda *_, **__: False)
    with pytest.raises(Failure) as caught:
        confirm("Really?", yes=False, again="x")
    assert caught.value.exit_code == 5
    confirm("Really?", yes=True, again="x")


# ---- progress and completion


def test_progress_in_a_log_is_a_line_per_phase_and_at_its_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress("adding n4", in_bytes=True) as advance:
        for done in range(0, 101, 10):
            advance("packs", done, 100)
        advance("log", 1, 0)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "adding n4: packs: 0 of 100 (0 %)",
        "adding n4: packs: 100 of 100 (100 %)",
        "adding n4: log: 1",
    ]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_completion_script(run: Run, shell: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert "_QUOREPO_COMPLETE" in result.stdout


def completed(stub: Stub, home: Path, words: str) -> list[str]:
    """What bash would offer for the last of `words`."""
    environment = {
        "_QUOREPO_COMPLETE": "bash_complete",
        "COMP_WORDS": f"quorepo {words}",
        "COMP_CWORD": str(len(words.split(" "))),
        "QUOREPO_TOKEN": TOKEN,
        "QUOREPO_ENDPOINT": stub.address,
        "XDG_CONFIG_HOME": str(home),
    }
    script = "from quorepo.rpc.cli.main import main; main()"
    process = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert process.stderr == ""
    return [line.partition(",")[2] for line in process.stdout.splitlines() if line]


def test_repositories_contexts_and_commands_are_completed(
    run: Run, stub: Stub, tmp_path: Path, token_file: Path
) -> None:
    add(run, "production", "127.0.0.1:1", token_file=token_file)
    home = tmp_path / "home"
    assert "status" in completed(stub, home, "sta")
    assert completed(stub, home, "repo info team/") == ["team/r0"]
    assert completed(stub, home, "context use p") == ["production"]
    stub.code = grpc.StatusCode.UNAVAILABLE
    assert completed(stub, home, "repo info team/") == []


# ---- documentation


def test_the_reference_is_current() -> None:
    written = (Path(__file__).resolve().parents[3] / "docs" / "cli.md").read_text()
    hint = ".venv/bin/python -m quorepo.rpc.cli.reference > docs/cli.md"
    assert reference() == written, f"run {hint}"

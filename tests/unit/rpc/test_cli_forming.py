"""`quorepo init`, `certificate` and `node token`: what they write, and what each mistake meets."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from support.cli import Run, Stub

from quorepo.cluster.enrolment import enrol_founder, enrol_with_secret, renew, renewal_is_due
from quorepo.cluster.peer.certificates import EXPIRY_WARNING, NODE_LIFETIME
from quorepo.rpc.cli.main import root
from quorepo.rpc.config import load_config, load_peer_credentials, load_tokens
from quorepo.rpc.node.enrol import enrol, tls_files
from quorepo.rpc.node.healthcheck import main as healthcheck
from quorepo.storage.errors import ConfigError

JOINS = ["--join", "n1:7423", "--join", "n2:7423", "--join", "n3:7423"]


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(root, [str(argument) for argument in arguments])


def modes(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mode & 0o777 for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("options", "files"),
    [
        (["--bootstrap"], {"quorepo.toml", "admin-token", "tokens"}),
        (
            ["--bootstrap-expect", "3", *JOINS],
            {"quorepo.toml", "admin-token", "tokens", "bootstrap-secret"},
        ),
        (["--join", "n1:7423"], {"quorepo.toml"}),
    ],
)
def test_what_init_writes_is_a_node(tmp_path: Path, options: list[str], files: set[str]) -> None:
    result = command("init", tmp_path / "node", "--name", "n1", "--advertise", "n1", *options)
    assert result.exit_code == 0, result.output
    found = modes(tmp_path / "node")
    assert set(found) == files
    assert all(mode == 0o600 for name, mode in found.items() if name != "quorepo.toml")
    config = load_config(tmp_path / "node" / "quorepo.toml")
    assert config.advertise.http_url == "https://n1:7420"
    if "tokens" in files:
        (token,) = (tmp_path / "node" / "secrets" / "admin-token").read_text().split()
        stored = (tmp_path / "node" / "secrets" / "tokens").read_text()
        assert token not in stored + result.output
        assert load_tokens(config.auth.tokens_file)
    again = command("init", tmp_path / "node", "--bootstrap")
    assert again.exit_code == 2
    assert "exists; nothing was changed" in again.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "say how the node gets into its cluster"),
        (["--bootstrap", "--join", "n1:7423"], "say how the node gets into its cluster"),
        (["--bootstrap-expect", "3", "--join", "n1:7423"], "join lists 1"),
        (["--join", "0.0.0.0:7423"], "name the one to connect to"),
        (["--bootstrap", "--name", "N 1"], "node name 'N 1' must be"),
    ],
)
def test_init_leaves_nothing_behind_when_it_makes_no_node(
    tmp_path: Path, options: list[str], words: str
) -> None:
    result = command("init", tmp_path / "node", *options)
    assert result.exit_code == 2
    assert words in result.output
    assert not [p for p in (tmp_path / "node").rglob("*") if p.is_file()]


def bootstrapped(tmp_path: Path) -> Path:
    command("init", tmp_path / "node", "--bootstrap", "--name", "n1", "--advertise", "n1.example")
    path = tmp_path / "node" / "quorepo.toml"
    enrol(load_config(path), path)
    return path


def test_certificates_are_shown_renewed_and_issued(tmp_path: Path) -> None:
    config = bootstrapped(tmp_path)
    shown = command("certificate", "show", "--config", config, "-o", "json")
    assert shown.exit_code == 0, shown.output
    uses = {one["use"]: one for one in json.loads(shown.stdout)}
    assert set(uses) == {"node", "CA", "http", "grpc", "metrics"}
    assert "n1.node.quorepo" in uses["node"]["names"]
    before = (config.parent / "tls" / "node.pem").read_bytes()
    key = (config.parent / "tls" / "node.key").read_bytes()
    assert command("certificate", "renew", "--config", config).exit_code == 0
    assert (config.parent / "tls" / "node.pem").read_bytes() != before
    assert (config.parent / "tls" / "node.key").read_bytes() == key
    out = tmp_path / "out"
    issue = ["certificate", "issue", "--config", str(config), "--node", "n4", "--out", str(out)]
    assert command(*issue).exit_code == 0
    assert modes(out) == {"n4.key": 0o600, "n4.pem": 0o644, "ca.pem": 0o644}
    again = command(*issue)
    assert again.exit_code == 1
    assert "exists; nothing was changed" in again.output
    web = command(
        "certificate", "issue", "--config", config, "--host", "git.example", "--host", "10.0.0.1",
        "--days", "10", "--out", tmp_path / "web",
    )  # fmt: skip
    assert web.exit_code == 0, web.output
    pem = (tmp_path / "web" / "listener.pem").read_bytes()
    ends = x509.load_pem_x509_certificate(pem).not_valid_after_utc
    assert ends < datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=10)
    both = command("certificate", "issue", "--config", config, "--out", tmp_path / "x")
    assert both.exit_code == 2
    (config.parent / "tls" / "ca.key").unlink()
    lost = command("certificate", "renew", "--config", config)
    assert lost.exit_code == 1
    assert "cannot read cluster.tls.ca_key_file" in lost.output


def test_a_certificate_that_ends_is_told_and_renewed_at_the_start(tmp_path: Path) -> None:
    config = load_config(bootstrapped(tmp_path))
    files = tls_files(config)
    now = datetime.datetime.now(datetime.UTC)
    assert not renewal_is_due(files, now)
    late = now + NODE_LIFETIME - EXPIRY_WARNING + datetime.timedelta(days=1)
    assert renewal_is_due(files, late)
    renew(files, now - NODE_LIFETIME + datetime.timedelta(days=5))  # one that ends in five days
    ends = command("certificate", "show", "--config", tmp_path / "node" / "quorepo.toml")
    assert ends.exit_code == 6
    assert "next: quorepo certificate renew" in ends.output
    enrol(config, tmp_path / "node" / "quorepo.toml")
    assert not renewal_is_due(files, now)
    load_peer_credentials(config)


def test_enrolment_is_refused_over_what_is_not_its_own(tmp_path: Path) -> None:
    config = load_config(bootstrapped(tmp_path))
    files = tls_files(config)
    now = datetime.datetime.now(datetime.UTC)
    files.certificate.unlink()
    assert files.ca_key is not None
    files.ca_key.rename(tmp_path / "ca.key")
    with pytest.raises(ConfigError, match=r"its key .* does not; nothing was changed"):
        enrol_founder(files, now)
    command("init", tmp_path / "three", "--bootstrap-expect", "3", *JOINS)
    with pytest.raises(ConfigError, match="is of another cluster than"):
        enrol_with_secret(files, tmp_path / "three" / "secrets" / "bootstrap-secret", now)
    assert not files.certificate.exists()


def test_a_joiner_without_a_token_is_told_the_next_command(tmp_path: Path) -> None:
    command("init", tmp_path / "node", "--join", "n1:7423", "--name", "n4")
    path = tmp_path / "node" / "quorepo.toml"
    text = path.read_text().replace("join_token_file", "# join_token_file")
    path.write_text(text)
    with pytest.raises(ConfigError, match="quorepo node token"):
        enrol(load_config(path), path)


def test_founding_nodes_copied_from_one_folder_accept_each_other(tmp_path: Path) -> None:
    command("init", tmp_path / "n1", "--bootstrap-expect", "3", *JOINS)
    for name in ("n2", "n3"):
        shutil.copytree(tmp_path / "n1", tmp_path / name)
    configs = {}
    for name in ("n1", "n2", "n3"):
        path = tmp_path / name / "quorepo.toml"
        path.write_text(path.read_text().replace("[node]", f'[node]\nname = "{name}"'))
        configs[name] = load_config(path)
        enrol(configs[name], path)
    for name in ("n2", "n3"):  # each is accepted by what n1 trusts
        shutil.copy(tmp_path / "n1" / "tls" / "ca.pem", tmp_path / name / "tls" / "ca.pem")
        assert load_peer_credentials(configs[name]).node == name


def test_the_healthcheck_says_no_for_a_node_that_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = bootstrapped(tmp_path)
    monkeypatch.setattr("sys.argv", ["healthcheck", "--config", str(config)])
    assert healthcheck() == 1


def test_a_token_goes_to_a_file_of_ones_own(stub: Stub, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "join-token"
    result = run("node", "token", "--node", "n4", "--ttl", "30m", "--file", str(path))
    assert result.exit_code == 0, result.output
    assert path.read_text() == "quorepo-join-1:secret\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert "quorepo-join-1" not in result.output
    request = stub.requests[-1]
    assert (request.node, request.lifetime_s) == ("n4", 1800)
    again = run("node", "token", "--file", str(path))
    assert again.exit_code == 2
    assert "exists; nothing was tried" in again.output
    printed = run("node", "token", "-o", "json")
    assert json.loads(printed.stdout)["token"] == "quorepo-join-1:secret"
    for ttl in ("1", "0h", "1w", "-1h"):
        wrong = run("node", "token", f"--ttl={ttl}")
        assert wrong.exit_code == 2
        assert "is no time" in wrong.output

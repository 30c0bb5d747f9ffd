"""`quorepo cluster debug-bundle`: what is in it, and that no secret is."""

from __future__ import annotations

import json
import re
import stat
import tarfile
from pathlib import Path

import pytest
from support.cli import TOKEN, Run, Stub

from quorepo.rpc.cli.debug_bundle import Scrubber

KEY = (
    "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\nsecretsecretsecret\n"
    "-----END PRIVATE KEY-----"
)
SECRETS = [
    "quorepo-join-1:AbCdEf0123456789",
    "MIGHAgEAMBMGByqGSM49",
    "pass-word-of-somebody",
    TOKEN,
]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("authorization: Bearer abcdefgh12345678", "authorization: Bearer [removed]"),
        ("Basic YWRtaW46c2VjcmV0", "Basic [removed]"),
        ("git clone https://admin:pass-word@h:7420/a", "git clone https://[removed]@h:7420/a"),
        ("token=quorepo-join-1:AbCd.Ef_-9 next", "token=[removed] next"),
        (f"a {KEY} b", "a [removed] b"),
        (KEY[:60], "[removed]"),  # cut off by the end of a log
        ("user admin-secret-1 came", "user [removed] came"),
        ("the cluster 31b0e3c8-60b7 on n1", "the cluster 31b0e3c8-60b7 on n1"),
    ],
)
def test_what_looks_like_a_secret_is_taken_out(text: str, left: str) -> None:
    assert Scrubber(["admin-secret-1", "short", ""]).clean(text) == left


@pytest.fixture
def node(run: Run, tmp_path: Path) -> Path:
    """A node's folder as `quorepo init` makes it, with a key."""
    folder = tmp_path / "node"
    joins = [word for n in (1, 2, 3) for word in ("--join", f"n{n}:7423")]
    assert run("init", str(folder), "--bootstrap-expect", "3", *joins).exit_code == 0
    (folder / "tls").mkdir(exist_ok=True)
    (folder / "tls" / "node.key").write_text(KEY)
    return folder / "quorepo.toml"


def secrets_of(node: Path) -> list[str]:
    """What must not leave the machine."""
    folder = node.parent / "secrets"
    words = [path.read_text() for path in folder.iterdir()]
    quoted = [found for text in words for found in re.findall(r'"([^"]{8,})"', text)]
    return [*quoted, *(line for text in words for line in text.splitlines() if line), *SECRETS]


def contents(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        found = {}
        for member in archive.getmembers():
            file = archive.extractfile(member)
            assert file is not None
            found[member.name.removeprefix("quorepo-debug/")] = file.read().decode()
    return found


def test_the_bundle_has_what_is_needed_and_no_secret(run: Run, node: Path, tmp_path: Path) -> None:
    log = tmp_path / "node.log"
    admin, bootstrap = (
        (node.parent / "secrets" / name).read_text() for name in ("admin-token", "bootstrap-secret")
    )
    log.write_text(
        f"msg=a authorization='Bearer {TOKEN}'\nurl=http://admin:pass-word-of-somebody@h/a\n"
        f"token=quorepo-join-1:AbCdEf0123456789\n{KEY}\n{admin}\n{bootstrap}\nmsg=last\n"
    )
    path = tmp_path / "out.tar.gz"
    result = run(
        "cluster", "debug-bundle", "--file", str(path), "--config", str(node), "--log", str(log),
        "-o", "json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = contents(path)
    assert {
        "config.json", "doctor.json", "health.json", "logs/1-node.log", "manifest.json",
        "status.json", "versions.json",
    } <= found.keys()  # fmt: skip
    assert "msg=last" in found["logs/1-node.log"]
    assert json.loads(found["status.json"])["cluster_id"] == "c1"
    assert "bootstrap_expect" in found["config.json"]
    everything = "\n".join(found.values()) + result.output
    assert [secret for secret in secrets_of(node) if secret in everything] == []
    assert "PRIVATE KEY" not in everything
    assert set(json.loads(result.stdout)["contents"]) == found.keys()


def test_a_cluster_that_does_not_answer_is_named_and_the_rest_is_there(
    run: Run, node: Path, tmp_path: Path
) -> None:
    path = tmp_path / "out.tar.gz"
    result = run(
        "cluster", "debug-bundle", "--file", str(path), "--config", str(node),
        "--endpoint", "127.0.0.1:1", "--timeout", "0.3",
    )  # fmt: skip
    assert result.exit_code == 0
    assert "without status.json: no node answers at 127.0.0.1:1" in result.stderr
    found = contents(path)
    assert "config.json" in found
    assert "status.json" in json.loads(found["manifest.json"])["missing"]


def test_nothing_is_overwritten(run: Run, stub: Stub, tmp_path: Path) -> None:
    path = tmp_path / "out.tar.gz"
    path.write_text("mine")
    result = run("cluster", "debug-bundle", "--file", str(path))
    assert result.exit_code == 2
    assert "nothing was written" in result.stderr
    assert path.read_text() == "mine"
    assert stub.requests == []

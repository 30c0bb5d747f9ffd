"""`quorepo config`, and the environment that overrides the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.cli import Run

from quorepo.rpc.config import load_config
from quorepo.rpc.config_environment import HIDDEN, hidden_secrets
from quorepo.rpc.demo.layout import prepare
from quorepo.storage.errors import ConfigError


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The configuration of a demo's first node, with all the files that it names."""
    return prepare(tmp_path / "demo", overrides=["storage.reserve_bytes=7"]).nodes[0].config


def settings(run: Run, config: Path, **environment: str | None) -> dict[str, tuple[object, str]]:
    result = run("config", "show", "--config", str(config), "-o", "json", **environment)
    assert result.exit_code == 0, result.output
    entries = json.loads(result.stdout)["settings"]
    return {entry["key"]: (entry["value"], entry["origin"]) for entry in entries}


def test_every_value_is_shown_with_where_it_came_from(run: Run, config: Path) -> None:
    shown = settings(run, config, QUOREPO_WORKERS__COUNT="5")
    assert shown["node.name"] == ("n1", "file")
    assert shown["storage.reserve_bytes"] == (7, "file")
    assert shown["workers.count"] == (5, "environment QUOREPO_WORKERS__COUNT")
    assert shown["workers.queue_max"] == (64, "default")
    assert shown["raft.trailing_entries"] == (10_000, "default")
    assert shown["advertise.grpc_address"] == ("127.0.0.1:7421", "derived")
    peers = ("n1", "127.0.0.1:7423")
    assert peers in shown["cluster.peers"][0].items()  # type: ignore[attr-defined]
    table = run("config", "show", "--config", str(config), "--changed").stdout
    assert "storage.reserve_bytes" in table
    assert "workers.queue_max" not in table


def test_the_environment_is_as_good_as_the_file(config: Path) -> None:
    loaded = load_config(
        config,
        {
            "QUOREPO_STORAGE__SWEEP": "true",
            "QUOREPO_RAFT__HEARTBEAT_INTERVAL_S": "0.05",
            "QUOREPO_GIT__HIDDEN_REFS": '["refs/internal"]',
            "QUOREPO_LISTEN__METRICS": "[::1]:9999",
            "QUOREPO_CLUSTER__TLS__CA_FILE": "other/ca.pem",
            "QUOREPO_TOKEN": "of the command line, not of the node",
        },
    )
    assert loaded.storage.sweep is True
    assert loaded.raft.heartbeat_interval_s == 0.05
    assert loaded.git.hidden_refs == ("refs/internal",)
    assert loaded.listen.metrics == "[::1]:9999"
    assert loaded.cluster.tls.ca_file == config.parent / "other/ca.pem"


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("QUOREPO_RAFT__TRAILING_ENTRYS", "5", "did you mean 'trailing_entries'"),
        ("QUOREPO_RAFFT__TRAILING_ENTRIES", "5", "did you mean 'raft'"),
        ("QUOREPO_WORKERS__COUNT", "many", "workers.count"),
    ],
)
def test_a_mistake_of_the_environment_is_told_to_be_one(
    config: Path, variable: str, value: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(config, {variable: value})
    assert words in str(caught.value)
    assert f"(environment: {variable})" in str(caught.value)


def test_validate_tells_every_reason_and_has_an_exit_code(run: Run, config: Path) -> None:
    good = run("config", "validate", "--config", str(config), "--files")
    assert (good.exit_code, good.stdout) == (0, f"{config}: good\n")
    (config.parent.parent / "secrets" / "tokens").chmod(0o644)
    assert run("config", "validate", "--config", str(config)).exit_code == 0
    result = run("config", "validate", "--config", str(config), "--files", "-o", "json")
    assert result.exit_code == 6
    document = json.loads(result.stdout)
    assert not document["valid"]
    assert "chmod 600" in document["problems"][0]
    config.write_text(config.read_text() + "\n[workers]\ncont = 3\n")
    result = run("config", "validate", "--config", str(config))
    assert result.exit_code == 6
    assert "unknown key 'workers.cont'; did you mean 'count'?" in result.stdout
    shown = run("config", "show", "--config", str(config))
    assert shown.exit_code == 1
    assert "quorepo config validate" in shown.stderr
    absent = run("config", "validate", "--config", str(config.parent / "absent.toml"))
    assert absent.exit_code == 6
    assert "cannot read" in absent.stdout


def test_the_schema_knows_every_section(run: Run) -> None:
    document = json.loads(run("config", "schema").stdout)
    assert {"node", "cluster", "listen", "auth", "storage"} <= set(document["properties"])
    assert document["additionalProperties"] is False


def test_secrets_are_not_shown() -> None:
    shown = hidden_secrets(
        "x",
        {
            "join_token": "t", "secret": "s", "ca_key": "k", "tokens_file": "/etc/tokens",
            "http_url": "https://admin:pw@git.example.net/", "names": ["http://u:p@h"],
        },
    )  # fmt: skip
    assert shown == {
        "join_token": HIDDEN, "secret": HIDDEN, "ca_key": HIDDEN, "tokens_file": "/etc/tokens",
        "http_url": f"https://{HIDDEN}@git.example.net/", "names": [f"http://{HIDDEN}@h"],
    }  # fmt: skip

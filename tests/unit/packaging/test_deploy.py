"""What deploy/ says of the product is true."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import CollectorRegistry, generate_latest
from support.cli import all_commands

from quorepo.cluster.metrics import ClusterMetrics
from quorepo.rpc.metrics import EdgeMetrics
from quorepo.storage.errors import FatalError

ROOT = Path(__file__).parents[3]


def test_alerts_name_metrics_that_exist() -> None:
    registry = CollectorRegistry()
    ClusterMetrics(registry)
    text = generate_latest(registry) + EdgeMetrics().text()
    declared = set(re.findall(r"^# TYPE (\S+)", text.decode(), re.MULTILINE))
    rules = (ROOT / "deploy" / "prometheus" / "quorepo.rules.yml").read_text()
    used = set(re.findall(r"quorepo_[a-z_]+", "\n".join(re.findall(r"expr: (.*)", rules))))
    assert len(used) >= 6
    assert {name.removesuffix("_bucket") for name in used} <= declared


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    groups = yaml.safe_load((ROOT / "deploy" / "prometheus" / "quorepo.rules.yml").read_text())
    rules = [rule for group in groups["groups"] for rule in group["rules"]]
    names = [rule["alert"] for rule in rules]
    assert len(set(names)) == len(names)
    for rule in rules:
        assert re.fullmatch(r"Quorepo[A-Za-z]+", rule["alert"])
        assert rule["annotations"].keys() >= {"summary", "action"}, rule["alert"]
        assert re.fullmatch(r"\d+[smhd]", rule.get("for", "0s")), rule["alert"]
        balanced = rule["expr"]
        assert balanced.count("(") == balanced.count(")"), rule["alert"]
        assert balanced.count("{") == balanced.count("}"), rule["alert"]
    # What the words tell an operator to type is there.
    told = " ".join(rule["annotations"]["action"] for rule in rules)
    commands = {name for name, _ in all_commands()}
    # "quorepo" may also stand before a word that is no command ("the quorepo on them").
    for words in re.findall(r"quorepo ((?:node|cluster|config|certificate) [a-z-]+)", told):
        assert words in commands, words


def test_what_operators_must_act_on_in_membership_and_repair_has_an_alert() -> None:
    rules = (ROOT / "deploy" / "prometheus" / "quorepo.rules.yml").read_text()
    for metric in (
        "quorepo_packs_missing", "quorepo_membership_change_running", "quorepo_node_draining",
        "quorepo_level_cluster", "quorepo_scrub_faults_left", "quorepo_raft_has_leader",
        "quorepo_peer_certificate_expiry_seconds",
    ):  # fmt: skip
        assert metric in rules, metric


def test_systemd_does_not_restart_what_must_not_be_restarted() -> None:
    unit = (ROOT / "deploy" / "systemd" / "quorepo.service").read_text()
    prevented = re.search(r"^RestartPreventExitStatus=(.*)$", unit, re.MULTILINE)
    assert prevented is not None
    assert set(prevented[1].split()) == {
        str(FatalError.EXIT_IO_ERROR),
        str(FatalError.EXIT_CONFIG),
    }


# ---- the container, the compose file and the unit are one thing


def dockerfile() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, continued lines joined."""
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines()]


def last_stage() -> dict[str, str]:
    stage: dict[str, str] = {}
    for name, arguments in dockerfile():
        if name == "FROM":
            stage = {}
        stage[name] = arguments
    return stage


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    return document


def test_the_image_runs_as_nobody_in_particular() -> None:
    stage = last_stage()
    assert stage["USER"] == "10001:10001"
    assert stage["STOPSIGNAL"] == "SIGTERM", "the supervisor stops its children in order"
    names = [name for name, _ in dockerfile()]
    assert "ADD" not in names
    assert "ENV" not in names, "nothing secret in the image"
    assert "ARG" not in names
    assert names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN")
    for name, arguments in dockerfile():
        if name == "FROM":
            assert re.fullmatch(r"python:3\.\d+-slim-bookworm( AS build)?", arguments)
        if name == "RUN":
            assert "sudo" not in arguments
            assert shlex.split(arguments.replace("&&", ";"))
    assert "--no-index" in stage["RUN"], "the last stage downloads nothing"


def test_the_healthcheck_of_the_image_exists() -> None:
    command = json.loads(last_stage()["HEALTHCHECK"].partition("CMD ")[2])
    assert command[:2] == ["python", "-m"]
    assert callable(importlib.import_module(command[2]).main)


def test_container_compose_and_unit_start_nodes_alike() -> None:
    stage = last_stage()
    command = json.loads(stage["CMD"])
    assert json.loads(stage["ENTRYPOINT"]) == ["quorepo"]
    services = compose()["services"]
    assert [service["command"] for service in services.values()] == [command] * 3
    unit = (ROOT / "deploy" / "systemd" / "quorepo.service").read_text()
    started = re.search(r"^ExecStart=/usr/local/bin/quorepo (.*)$", unit, re.MULTILINE)
    assert started is not None
    assert started[1].split() == command


def test_the_services_differ_only_in_name_ports_and_data() -> None:
    services = compose()["services"]
    rest = []
    for name, service in services.items():
        assert service["hostname"] == name
        own, *given = service["volumes"]
        assert own == f"{name}:/var/lib/quorepo"
        assert all(volume.endswith(":ro") for volume in given)
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        rest.append({k: v for k, v in service.items() if k not in ("hostname", "ports", "volumes")})
        rest[-1]["given"] = given
    assert rest[0] == rest[1] == rest[2]
    exposed = last_stage()["EXPOSE"].split()
    inside = {port.partition(":")[2] for s in services.values() for port in s["ports"]}
    assert inside <= set(exposed)

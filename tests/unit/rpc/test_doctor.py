"""`quorepo doctor` on a stopped node, and each of its checks with what is wrong."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from support.cli import Run
from support.demo import free_base_port
from support.peer_certificates import authority

from quorepo import __version__
from quorepo.cluster.peer.certificates import issue_certificate
from quorepo.cluster.state.rows import NodeRow
from quorepo.rpc.demo.layout import DemoLayout, prepare
from quorepo.rpc.doctor import disk, network
from quorepo.rpc.doctor.findings import CHECKS


@pytest.fixture
def demo(tmp_path: Path) -> DemoLayout:
    """Three nodes that were never started, with all their files."""
    return prepare(tmp_path / "demo", 3, free_base_port(3))


Findings = dict[int, list[dict[str, Any]]]


def examine(run: Run, demo: DemoLayout, *options: str) -> tuple[int, Findings]:
    arguments = ("doctor", "--config", str(demo.nodes[0].config), "-o", "json", *options)
    result = run(*arguments)
    assert result.stdout, result.output
    findings: Findings = {}
    for finding in json.loads(result.stdout)["findings"]:
        findings.setdefault(finding["number"], []).append(finding)
    assert set(findings) == set(CHECKS)
    return result.exit_code, findings


def severities(findings: Findings, number: int) -> set[str]:
    return {finding["severity"] for finding in findings[number]}


def said(findings: Findings, number: int) -> str:
    return "\n".join(f"{f['finding']}\n{f['next_step']}" for f in findings[number])


def test_a_node_before_its_first_start(run: Run, demo: DemoLayout) -> None:
    code, findings = examine(run, demo)
    assert code == 6  # the others are not there
    assert severities(findings, 2) == {"info"}
    for number in (1, 6, 7, 8, 9, 10):
        assert severities(findings, number) == {"ok"}, said(findings, number)
    assert severities(findings, 11) == {"error"}
    assert "is n2 running" in said(findings, 11)
    assert severities(findings, 12) == {"skipped"}
    assert severities(findings, 13) == {"skipped"}
    assert not demo.nodes[0].data_dir.exists()  # it looks, and makes nothing


def test_every_finding_that_is_not_good_says_what_to_do(run: Run, demo: DemoLayout) -> None:
    _code, findings = examine(run, demo)
    for found in findings.values():
        for finding in found:
            assert finding["next_step"] or finding["severity"] in ("ok", "info")
    table = run("doctor", "--config", str(demo.nodes[0].config)).stdout
    assert "next, for 11 (peers, from here)" in table


def test_a_wrong_configuration_ends_the_examination(run: Run, demo: DemoLayout) -> None:
    demo.nodes[0].config.write_text("[node]\nnmae = 'n1'\n")
    code, findings = examine(run, demo)
    assert code == 6
    assert "did you mean 'name'" in said(findings, 1)
    assert severities(findings, 7) == {"skipped"}


def test_secrets_that_others_can_read(run: Run, demo: DemoLayout) -> None:
    secrets = demo.root / "secrets"
    (secrets / "tokens").chmod(0o640)
    (secrets / "n1.key").chmod(0o604)
    _code, findings = examine(run, demo)
    assert severities(findings, 6) == {"error"}
    assert f"chmod 600 {secrets / 'tokens'}" in said(findings, 6)
    assert "cluster.tls.key_file" in said(findings, 6)
    assert severities(findings, 7) == {"error"}


@pytest.mark.parametrize(("days", "severity"), [(-1, "error"), (5, "warning"), (100, "ok")])
def test_the_end_of_a_certificate(run: Run, demo: DemoLayout, days: int, severity: str) -> None:
    now = datetime.datetime.now(datetime.UTC)
    ca = authority()
    begin = now - datetime.timedelta(days=30)
    issued = issue_certificate(ca, "n1", begin, datetime.timedelta(days=30 + days, minutes=5))
    secrets = demo.root / "secrets"
    (secrets / "ca.pem").write_bytes(ca.certificate_pem)
    (secrets / "n1.pem").write_bytes(issued.certificate_pem)
    (secrets / "n1.key").write_bytes(issued.key_pem)
    _code, findings = examine(run, demo)
    assert severities(findings, 7) == {severity}, said(findings, 7)


def identity(demo: DemoLayout, **changes: object) -> None:
    folder = demo.nodes[0].data_dir
    folder.mkdir(mode=0o700)
    content = {"format_version": 1, "node": "n1", **changes}
    (folder / "node.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"node": "n2"}, "belongs to node 'n2'"),
        ({"format_version": 99}, "run the newer quorepo"),
        ({"format_version": "x"}, "cannot be used"),
    ],
)
def test_a_data_directory_that_does_not_fit(
    run: Run, demo: DemoLayout, changes: dict[str, object], words: str
) -> None:
    identity(demo, **changes)
    _code, findings = examine(run, demo)
    assert severities(findings, 2) == {"error"}
    assert words in said(findings, 2)


def test_a_half_restored_disk_and_open_modes(run: Run, demo: DemoLayout) -> None:
    (demo.nodes[0].data_dir / "journal").mkdir(parents=True)
    (demo.nodes[0].data_dir / "journal" / "1").touch()
    demo.nodes[0].data_dir.chmod(0o755)
    _code, findings = examine(run, demo)
    assert severities(findings, 2) == {"error", "warning"}
    assert "node.json is missing" in said(findings, 2)
    assert f"chmod 700 {demo.nodes[0].data_dir}" in said(findings, 2)


def test_who_uses_a_data_directory(tmp_path: Path) -> None:
    assert disk.core_process(tmp_path) is None
    lock = tmp_path / "lock"
    lock.write_text(f"{os.getpid()}\n")
    assert disk.core_process(tmp_path) is None
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert disk.core_process(tmp_path) == os.getpid()
    assert disk.core_process(tmp_path) is None


def test_an_address_that_is_taken(run: Run, demo: DemoLayout) -> None:
    host, _, port = demo.nodes[0].metrics.rpartition(":")
    with socket.create_server((host, int(port))):
        _code, findings = examine(run, demo)
    assert "error" in severities(findings, 10)
    assert "listen.metrics" in said(findings, 10)
    assert f"ss -ltnp 'sport = :{port}'" in said(findings, 10)


@pytest.mark.parametrize(("latency_s", "severity"), [(0.3, "error"), (0.05, "warning"), (0, "ok")])
def test_a_slow_disk(
    run: Run,
    demo: DemoLayout,
    monkeypatch: pytest.MonkeyPatch,
    latency_s: float,
    severity: str,
) -> None:
    monkeypatch.setattr(disk, "sync_latencies_s", lambda folder: [latency_s] * 5)
    _code, findings = examine(run, demo)
    assert severities(findings, 3) == {severity}


def test_the_sync_of_the_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    assert len(disk.sync_latencies_s(tmp_path)) > 0
    assert list(tmp_path.iterdir()) == []


def test_a_disk_below_its_reserve(
    run: Run, demo: DemoLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs("/")
    fields = list(real)
    fields[4] = 1  # f_bavail
    monkeypatch.setattr(os, "statvfs", lambda _path: os.statvfs_result(fields))
    _code, findings = examine(run, demo)
    assert "error" in severities(findings, 4)
    assert "takes no pushes" in said(findings, 4)


@pytest.mark.parametrize(("skew_s", "severity"), [(90, "error"), (-5, "warning"), (0.4, "ok")])
def test_a_clock_that_is_off(
    demo: DemoLayout, monkeypatch: pytest.MonkeyPatch, skew_s: float, severity: str
) -> None:
    monkeypatch.setattr(network, "_skew_s", lambda machine, url: skew_s)
    other = network.Other("n2", "127.0.0.1:1")
    other.http = "http://127.0.0.1:1"
    machine: Any = None
    (finding,) = network.check_clocks(machine, [other])
    assert finding.severity == severity
    if severity != "ok":
        assert "timedatectl" in finding.next_step


def test_another_version(demo: DemoLayout) -> None:
    other = network.Other("n2", "127.0.0.1:1")
    other.version = "9.9"
    machine: Any = None
    (finding,) = network.check_versions(machine, [other])
    assert finding.severity == "warning"
    assert "n2 9.9" in finding.what


def test_the_level_that_a_node_registers_with_its_version_is_no_other_version() -> None:
    """Every node of a healthy cluster was warned of."""
    row = NodeRow(
        "n2", "n2@1", "a:3", "http://a:1", "a:2", "http://a:4", f"{__version__}+level.7", 0
    )
    machine: Any = None
    (finding,) = network.check_versions(machine, [network.Other("n2", "127.0.0.1:1", row)])
    assert finding.severity == "ok"
    assert finding.what == f"{__version__}, as 1 other node(s)"


def test_strict_counts_warnings(run: Run, demo: DemoLayout) -> None:
    one = prepare(demo.root.parent / "one", 1, free_base_port(1))
    one.nodes[0].data_dir.mkdir()
    one.nodes[0].data_dir.chmod(0o755)
    assert examine(run, one)[0] == 0
    assert examine(run, one, "--strict")[0] == 6

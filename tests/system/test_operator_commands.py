"""What the commands of an operator say while real nodes are well, and while they are killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.demo import Demo
from support.waiting import eventually

pytestmark = pytest.mark.system


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    with Demo(tmp_path / "demo") as running:
        yield running


def doctor(demo: Demo, name: str) -> tuple[int, list[dict[str, Any]]]:
    process = subprocess.run(
        [sys.executable, "-m", "quorepo", "doctor", "-o", "json",
         "--config", str(demo.directory / "config" / f"{name}.toml")],
        capture_output=True, text=True, timeout=60, check=False,
        env={key: value for key, value in os.environ.items() if not key.startswith("QUOREPO_")},
    )  # fmt: skip
    assert process.stdout, process.stderr
    findings: list[dict[str, Any]] = json.loads(process.stdout)["findings"]
    return process.returncode, findings


def of(findings: list[dict[str, Any]], number: int) -> set[str]:
    return {finding["severity"] for finding in findings if finding["number"] == number}


def health(demo: Demo, node: str) -> tuple[int, dict[str, Any]]:
    process = demo.cli("cluster", "health", "-o", "json", node=node, check=False)
    assert process.stdout, process.stderr
    return process.returncode, json.loads(process.stdout)


def test_health_and_doctor_follow_what_happens_to_the_nodes(demo: Demo) -> None:
    eventually(lambda: health(demo, "n1")[0] == 0, what="healthy")
    code, findings = doctor(demo, "n1")
    bad = [finding for finding in findings if finding["severity"] in ("error", "skipped")]
    # A slow disk of the machine that tests is no fault of the nodes.
    assert [finding for finding in bad if finding["number"] not in (3, 4)] == []
    assert code == 0 or bad

    demo.kill("n3")
    eventually(lambda: health(demo, "n1")[0] == 6, what="degraded")
    _code, document = health(demo, "n1")
    told = "\n".join(problem["what"] for problem in document["problems"])
    assert "n3 does not answer" in told
    assert "tolerates no further failure (3 voters, 2 reachable, majority 2)" in told
    code, findings = doctor(demo, "n1")
    assert code == 6
    assert of(findings, 11) == of(findings, 12) == {"ok", "error"}
    _code, stopped = doctor(demo, "n3")
    assert "stopped" in next(f["finding"] for f in stopped if f["number"] == 2)
    assert of(stopped, 10) == of(stopped, 11) == of(stopped, 13) == {"ok"}
    assert of(stopped, 12) == {"skipped"}

    demo.kill("n2")
    eventually(lambda: health(demo, "n1")[0] == 3, what="unavailable")
    _code, document = health(demo, "n1")
    critical = [p for p in document["problems"] if p["severity"] == "critical"]
    assert "no majority (3 voters, 1 reachable, majority 2)" in critical[0]["what"]
    assert "start 1 of n2, n3" in critical[0]["next_step"]

    demo.restart("n2")
    demo.restart("n3")
    eventually(lambda: health(demo, "n1")[0] == 0, what="healthy again")


def test_the_debug_bundle_of_a_running_cluster_has_its_metrics_and_no_secret(
    cluster: Demo, tmp_path: Path
) -> None:
    path = tmp_path / "bundle.tar.gz"
    log, config = cluster.directory / "logs" / "n1.log", cluster.directory / "config" / "n1.toml"
    cluster.cli(
        "cluster", "debug-bundle", "--file", str(path), "--config", str(config), "--log", str(log)
    )
    with tarfile.open(path) as archive:
        files = {m.name: archive.extractfile(m) for m in archive.getmembers()}
        found = {name: file.read().decode() for name, file in files.items() if file is not None}
    assert "quorepo_raft_role" in found["quorepo-debug/metrics/n3.txt"]
    assert "msg=serving" in found["quorepo-debug/logs/1-n1.log"]
    assert json.loads(found["quorepo-debug/manifest.json"])["missing"] == {}
    everything = "\n".join(found.values())
    assert cluster.token not in everything
    assert "PRIVATE KEY" not in everything

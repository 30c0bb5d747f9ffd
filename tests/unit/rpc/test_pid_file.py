"""Finding the supervisor of a node, and never signalling anything else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from quorepo.rpc.node.pid_file import AlreadyRunning, find_running, pid_file

HOLDER = """
import pathlib, signal, sys
from quorepo.rpc.node.pid_file import pid_file
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with pid_file(pathlib.Path(sys.argv[1]), sys.argv[3]):
    print("held", flush=True)
    signal.pause()
"""


def start_holder(path: Path, config: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), "--config", config],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_running_node_is_found_and_stopped(tmp_path: Path) -> None:
    path = tmp_path / "run" / "n1.pid"
    process = start_holder(path, "/etc/n1.toml")
    running = find_running(path)
    assert running is not None
    assert running.pid == process.pid
    assert running.send(signal.SIGTERM)
    assert process.wait(10) == 0
    process.communicate()
    assert find_running(path) is None
    assert not running.send(signal.SIGTERM)


def test_a_node_runs_once_per_configuration(tmp_path: Path) -> None:
    path = tmp_path / "n1.pid"
    process = start_holder(path, "/etc/n1.toml")
    try:
        with (
            pytest.raises(AlreadyRunning, match=f"running already as process {process.pid}"),
            pid_file(path, "/etc/n1.toml", wait_s=0.1),
        ):
            pytest.fail("held twice")
    finally:
        process.kill()
        process.communicate()
    with pid_file(path, "/etc/n1.toml", wait_s=0.1):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_reused_process_id_is_not_mistaken_for_the_node(tmp_path: Path) -> None:
    path = tmp_path / "n1.pid"
    process = start_holder(path, "/etc/n1.toml")
    try:
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "started": content["started"] - 1}))
        assert find_running(path) is None
        path.write_text(json.dumps({**content, "config": "/etc/n2.toml"}))
        assert find_running(path) is None
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("content", ["", "garbage", "{}", '{"pid": "x"}', "[]", "7"])
def test_a_damaged_file_names_nobody(tmp_path: Path, content: str) -> None:
    path = tmp_path / "n1.pid"
    path.write_text(content)
    assert find_running(path) is None

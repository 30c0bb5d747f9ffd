"""What an operator asks about the members, and nodes beside a demo that wait to be taken in."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.demo import Demo
from support.waiting import eventually

__all__ = [
    "WAIT_S",
    "add_command",
    "background",
    "change",
    "configurations",
    "lead",
    "members",
    "peer_address",
    "restart_log",
    "restart_with_failpoint",
    "start_newcomer",
    "wait_for_change",
    "wait_until_killed",
    "wait_until_waiting",
    "wipe",
]

WAIT_S = 60
_KILLED = re.compile(r"killed by SIGKILL|worker died")


def peer_address(demo: Demo, name: str) -> str:
    """Where a node of a demo, or one beside it, listens for the others."""
    return f"127.0.0.1:{demo.base_port + (int(name[1:]) - 1) * 10 + 3}"


def add_command(demo: Demo, name: str, *options: str) -> tuple[str, ...]:
    """`quorepo node add`, without a question."""
    return ("node", "add", name, "--peer-address", peer_address(demo, name), "--yes", *options)


def members(demo: Demo, ask: str) -> dict[str, str | None]:
    """Each node's part in the cluster: voter, learner, or none."""
    nodes = json.loads(demo.cli("node", "list", "-o", "json", node=ask).stdout)["nodes"]
    return {node["name"]: node["member"] for node in nodes}


def configurations(demo: Demo, ask: str) -> dict[int, dict[str, bool]]:
    """Who is in each group, by replica id, and whether it votes."""
    groups = demo.status(ask)["groups"]
    return {g["group"]: {r["replica_id"]: r["votes"] for r in g["replicas"]} for g in groups}


def start_newcomer(demo: Demo, name: str, **environment: str) -> None:
    """One more node, that waits to be added."""
    demo.prepare(name)
    demo.restart(name, **environment)


def wait_until_waiting(demo: Demo, name: str, ask: str) -> None:
    """Until a plan can be made for a newcomer: it is up and says who it is."""
    command = add_command(demo, name, "--dry-run")
    eventually(
        lambda: demo.cli(*command, node=ask, check=False).returncode == 0,
        timeout_s=WAIT_S, what=f"{name} waits to be added",
    )  # fmt: skip


@contextlib.contextmanager
def background(demo: Demo, *arguments: str, node: str) -> Iterator[subprocess.Popen[str]]:
    """The `quorepo` command, not waited for; killed at the end when it still runs."""
    with subprocess.Popen(
        [sys.executable, "-m", "quorepo", "--endpoint", demo.nodes[node].grpc, *arguments],
        env={**os.environ, "QUOREPO_TOKEN": demo.token, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def change(demo: Demo, ask: str) -> dict[str, Any] | None:
    """The change under way, if there is one."""
    listed = json.loads(demo.cli("node", "list", "-o", "json", node=ask).stdout)
    running: dict[str, Any] | None = listed["running"]
    return running


def wait_for_change(demo: Demo, ask: str, kind: str) -> None:
    """Until a change of this kind is recorded."""

    def recorded() -> bool:
        running = change(demo, ask)
        return running is not None and running["kind"] == kind

    eventually(recorded, timeout_s=WAIT_S, what=f"{kind} is under way")


def lead(demo: Demo, name: str, ask: str) -> None:
    """Makes a node the leader of every group."""
    eventually(
        lambda: demo.cli(
            "cluster", "transfer-leader", "--to", name, node=ask, check=False
        ).returncode == 0,
        timeout_s=WAIT_S, what=f"{name} leads",
    )  # fmt: skip


def restart_with_failpoint(demo: Demo, name: str, failpoint: str, ask: str) -> None:
    """The node, started again with a failpoint, leads every group."""
    demo.kill(name)
    demo.restart(name, QUOREPO_FAILPOINTS=failpoint)
    lead(demo, name, ask)


def restart_log(demo: Demo, name: str) -> str:
    """What a node that a test started said."""
    return (demo.directory.parent / f"{name}.restart.log").read_text(errors="replace")


def wait_until_killed(demo: Demo, name: str) -> None:
    """Until a failpoint killed a process of the node: without it a test would test nothing."""
    eventually(
        lambda: _KILLED.search(restart_log(demo, name)),
        timeout_s=WAIT_S, what=f"the failpoint of {name} was reached",
    )  # fmt: skip


def wipe(demo: Demo, name: str) -> None:
    """A new disk in the place of the old one; the node must not run."""
    shutil.rmtree(demo.nodes[name].data_dir)
    Path(demo.nodes[name].data_dir).mkdir(mode=0o700)

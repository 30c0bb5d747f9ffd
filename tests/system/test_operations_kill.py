"""kill -9 of leaders and of serving edges under writes through the API, repeated with their ids.

Every write is done exactly once, and whoever watches sees every change of a ref.
"""

from __future__ import annotations

import collections
import os
import signal
from pathlib import Path

import pytest
from support.demo import Demo
from support.git import clone, git, refs_of
from support.operators import KINDS, Operator, prepare
from support.waiting import eventually
from support.watching import Watcher, history_of

import quorepo

pytestmark = pytest.mark.system

STORAGE = 1
PATH = "kill/operations"
# What git names as the thing that a write made.
REFS_MADE = {"names": "refs/tags/tag-"}


def child_pid(demo: Demo, node: str, module: str) -> int:
    """The core or the edge of a node; 0: there is none just now."""
    task = Path(f"/proc/{demo.nodes[node].pid}/task/{demo.nodes[node].pid}/children")
    for pid in task.read_text().split():
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if f"quorepo.rpc.node.{module}_main".encode() in arguments:
            return int(pid)
    return 0


def kill_child(demo: Demo, node: str, module: str) -> None:
    """kill -9; the node's supervisor starts it again."""
    pid = eventually(lambda: child_pid(demo, node, module), what=f"{module} of {node}")
    os.kill(pid, signal.SIGKILL)
    eventually(
        lambda: child_pid(demo, node, module) not in (0, pid),
        timeout_s=60, what=f"{module} of {node} again",
    )  # fmt: skip


def wait_until_it_serves(demo: Demo, node: str) -> None:
    eventually(
        lambda: git("ls-remote", demo.url(node, PATH), check=False).returncode == 0,
        timeout_s=60, what=f"{node} serves",
    )  # fmt: skip


def test_every_write_is_done_once_and_watched_by_all(own_cluster: Demo, tmp_path: Path) -> None:
    demo = own_cluster
    names = list(demo.nodes)
    addresses = [node.grpc for node in demo.nodes.values()]

    def make_client() -> quorepo.Client:
        return quorepo.Client(addresses, token=demo.token, timeout_s=100)

    watchers = [Watcher(demo, [name]) for name in names]
    watchers += [Watcher(demo, names), Watcher(demo, names, forgetful=True)]
    with make_client() as client:
        prepare(client, PATH)
    operators = [Operator(make_client, PATH, name) for name in ("one", "two")]
    for thread in (*watchers, *operators):
        thread.start()

    def progress() -> None:
        for operator in operators:
            operator.wait_for_all_kinds()

    progress()
    leader = demo.leader(STORAGE)
    demo.kill(leader)
    progress()
    demo.restart(leader)
    wait_until_it_serves(demo, leader)
    for module in ("edge", "core"):
        for node in names:
            kill_child(demo, node, module)
            wait_until_it_serves(demo, node)
    progress()
    leader = demo.leader(STORAGE)
    heir = next(name for name in names if name != leader)
    demo.cli("cluster", "transfer-leader", "--group", str(STORAGE), "--to", heir)
    progress()
    for operator in operators:
        operator.finish()

    check_each_is_done_once(demo, operators, tmp_path)
    check_watchers(demo, watchers)


def check_each_is_done_once(demo: Demo, operators: list[Operator], folder: Path) -> None:
    """What was acknowledged stands in the history once, and every node shows the same refs."""
    shown = [refs_of(demo.url(name, PATH)) for name in demo.nodes]
    assert shown[0] == shown[1] == shown[2]
    mirror = clone(demo.url("n1", PATH), folder / "mirror", "--mirror")
    git("fsck", "--strict", "--no-dangling", cwd=mirror)
    log = git("log", "--all", "--format=%s", cwd=mirror).stdout.splitlines()
    commits = collections.Counter(log)
    for operator in operators:
        assert set(operator.done.values()) == set(KINDS)
        for words, kind in operator.done.items():
            if kind == "names":
                assert shown[0].get(f"refs/tags/tag-{words}")
                assert f"refs/heads/short-{words}" not in shown[0]
            else:
                assert commits[words] == 1, f"{words} was done {commits[words]} times"


def check_watchers(demo: Demo, watchers: list[Watcher]) -> None:
    """All have seen the same: every change that the nodes have applied, in its order."""
    histories = {name: history_of(demo, name) for name in demo.nodes}
    wanted = max(histories.values(), key=len)
    for watcher in watchers:
        watcher.wait_for(wanted[-1].index)
        watcher.finish()
        assert watcher.wrong == []
        assert watcher.changes() == wanted
    for name, history in histories.items():
        assert history == wanted[: len(history)], name
    assert min(watcher.streams for watcher in watchers) > 1, "all streams were broken"
    # And it is the refs' real history: each change begins where the one before ended.
    refs: dict[tuple[str, bytes], str] = {}
    for change in wanted:
        key = (change.repository_id, change.name)
        assert refs.get(key, "") == change.old_oid
        refs[key] = change.new_oid
    current = {name.decode(): oid for (_, name), oid in refs.items() if oid}
    shown = refs_of(demo.url("n2", PATH))
    assert {name: oid for name, oid in shown.items() if name in current} == current
    assert {name for name in shown if name.startswith("refs/") and "^{}" not in name} == set(
        current
    )

"""A real disk that fills: writes stop before anything fails, reads go on, and it recovers alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.demo import Demo
from support.git import WorkTree, clone, git, refs_of
from support.small_disks import SmallDisks, can_mount
from support.waiting import eventually

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not can_mount(), reason="no mount namespaces here (unshare --mount)"),
]

STORAGE = 1
MIB = 1024 * 1024
DISK = 96 * MIB
RESERVE = 16 * MIB
LOW = RESERVE * 3 // 4  # no new pushes, but what others accepted is still taken over
FULL = RESERVE // 4  # nothing at all


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisks]:
    options = ("--set", f"storage.reserve_bytes={RESERVE}")
    directory = tmp_path_factory.mktemp("small") / "demo"
    with SmallDisks(directory, *options, size_bytes=DISK) as demo:
        yield demo


@pytest.fixture(autouse=True)
def room(disks: SmallDisks) -> Iterator[None]:
    """Every test begins and ends with room on all disks, and with the processes it began with."""
    before = _processes(disks)
    yield
    for name in disks.nodes:
        disks.make_room(name)
    assert _processes(disks) == before, "a process died of the full disk"


def _processes(demo: Demo) -> dict[str, list[str]]:
    """The core and the edge of every node; workers come and go."""
    return {
        name: Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()
        for name, node in demo.nodes.items()
    }


def _push(demo: Demo, work: WorkTree, node: str, path: str, what: str = "main") -> bool:
    return work.git("push", "--quiet", demo.url(node, path), what, check=False).returncode == 0


def _wait_for_push(demo: Demo, work: WorkTree, node: str, path: str) -> None:
    work.commit("there is room again")
    eventually(
        lambda: _push(demo, work, node, path), timeout_s=40, what=f"{node} takes pushes again"
    )


def _check_equal(disks: SmallDisks, path: str, folder: Path) -> None:
    """Every node serves the same refs, and a whole repository."""
    refs = [refs_of(disks.url(name, path)) for name in disks.nodes]
    assert all(other == refs[0] for other in refs)
    for name in disks.nodes:
        target = clone(disks.url(name, path), folder / f"equal-{name}", "--mirror")
        git("fsck", "--strict", cwd=target)


def test_a_leader_without_room_hands_over_and_pushes_go_on(
    disks: SmallDisks, work: WorkTree, tmp_path: Path
) -> None:
    path = "full/leader"
    work.commit("first")
    work.git("push", "--quiet", disks.url("n1", path), "main")
    full = disks.leader(STORAGE)
    other = next(name for name in disks.nodes if name != full)
    disks.fill(full, LOW)
    eventually(
        lambda: disks.leader(STORAGE, ask=other) != full, timeout_s=30, what=f"{full} hands over"
    )
    assert "quorepo_disk_low 1.0" in disks.metrics(full)

    oid = work.commit("taken by the others")
    work.git("push", "--quiet", disks.url(other, path), "main")
    work.commit("not taken here", {"large": os.urandom(MIB)})
    refused = work.git("push", disks.url(full, path), "main", check=False)
    assert refused.returncode != 0
    assert "storage.reserve_bytes" in refused.stderr
    for name in disks.nodes:
        assert refs_of(disks.url(name, path))["refs/heads/main"] == oid
    clone(disks.url(full, path), tmp_path / "clone")

    disks.make_room(full)
    _wait_for_push(disks, work, full, path)
    _check_equal(disks, path, tmp_path)


def test_a_follower_without_any_room_lags_and_catches_up(
    disks: SmallDisks, work: WorkTree, tmp_path: Path
) -> None:
    path = "full/follower"
    work.commit("first")
    work.git("push", "--quiet", disks.url("n1", path), "main")
    leader = disks.leader(STORAGE)
    full = next(name for name in disks.nodes if name != leader)
    disks.fill(full, FULL)
    eventually(
        lambda: "quorepo_disk_full 1.0" in disks.metrics(full), what=f"{full} notices its disk"
    )
    for number in range(5):
        work.commit(f"without {full} {number}", {f"large{number}": os.urandom(MIB)})
        assert _push(disks, work, leader, path)
    disks.make_room(full)
    eventually(
        lambda: git("ls-remote", disks.url(full, path), check=False).returncode == 0,
        timeout_s=40, what=f"{full} caught up",
    )  # fmt: skip
    assert refs_of(disks.url(full, path))["refs/heads/main"] == work.head()
    _check_equal(disks, path, tmp_path)


def test_all_disks_fill_under_pushes_and_nothing_acknowledged_is_lost(
    disks: SmallDisks, work: WorkTree, tmp_path: Path
) -> None:
    path = "full/all"
    work.commit("first")
    work.git("push", "--quiet", disks.url("n1", path), "main")
    acknowledged: dict[str, str] = {}
    refused: dict[str, str] = {}
    names = list(disks.nodes)
    messages: list[str] = []

    def push_until_refused() -> None:
        number = 0
        while len(refused) < 6:
            number += 1
            oid = work.commit(f"change {number}", {f"file{number % 5}": os.urandom(300_000)})
            ref = f"refs/heads/b{number}"
            url = disks.url(names[number % 3], path)
            process = work.git("push", url, f"{oid}:{ref}", check=False)
            if process.returncode == 0:
                acknowledged[ref] = oid
            else:
                messages.append(process.stderr)
                if "[remote rejected]" in process.stderr:
                    refused[ref] = oid

    pusher = threading.Thread(target=push_until_refused, daemon=True)
    pusher.start()
    eventually(lambda: len(acknowledged) >= 3, timeout_s=30, what="pushes are acknowledged")
    for name in names:
        disks.fill(name, LOW)
    pusher.join(120)
    assert not pusher.is_alive(), messages[-1:]
    assert any("storage.reserve_bytes" in message for message in messages)

    for name in names:  # reads go on, on every node
        refs = refs_of(disks.url(name, path))
        assert {ref: refs.get(ref) for ref in acknowledged} == acknowledged
        assert not refused.keys() & refs.keys()
    clone(disks.url("n2", path), tmp_path / "clone", "--mirror")

    for name in names:
        disks.make_room(name)
    _wait_for_push(disks, work, "n3", path)
    refs = refs_of(disks.url("n3", path))
    assert {ref: refs.get(ref) for ref in acknowledged} == acknowledged
    assert not refused.keys() & refs.keys()
    _check_equal(disks, path, tmp_path)

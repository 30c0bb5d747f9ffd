"""Which callers are the disk that this node knows: what proves a copy, and what must not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest

from quorepo.cluster.boots import FORMER_MAX, Boot, begin_boot
from quorepo.cluster.peer.known import KnownDisks
from quorepo.cluster.raft.heard import Heard
from quorepo.internal.v1 import peer_pb2
from quorepo.storage.errors import FatalError

REPLICA = "n3@d1"
ADDRESS = "127.0.0.1:1"


@dataclasses.dataclass
class Surroundings:
    """What the engine heard, and who answers where."""

    heard: dict[int, Heard] = dataclasses.field(default_factory=dict)
    answers: dict[str, bytes] = dataclasses.field(default_factory=dict)

    async def promises(self, replica_id: str) -> Mapping[int, Heard]:
        return self.heard

    async def answers_as(self, replica_id: str, address: str) -> bytes:
        return self.answers.get(address, b"")


class Peer:
    """The node that judges; `restart` is its own end and start."""

    def __init__(self, folder: Path) -> None:
        self.around = Surroundings()
        self._path = folder / "known-disks.json"
        self.restart()

    def restart(self) -> None:
        self.around.heard = {}
        self.disks = KnownDisks(self._path, self.around.promises, self.around.answers_as)

    async def hear(
        self, boot: Boot, *, term: int = 0, last: int = 0, here: bool = False,
        address: str = ADDRESS,
    ) -> str:  # fmt: skip
        """Empty when the caller is let in, "later" when it has to wait, else why it is refused."""
        record = boot.message()
        record.groups.add(group=1, term=term, last_index=last)
        first = peer_pb2.RaftFrame(from_replica=REPLICA, from_address=address, boot=record)
        verdict = await self.disks.judge(first, another_is_here=here)
        return verdict.wrong or ("later" if verdict.problem else "")


@pytest.fixture
def peer(tmp_path: Path) -> Peer:
    return Peer(tmp_path)


def start(disk: Path) -> Boot:
    disk.mkdir(exist_ok=True)
    return begin_boot(disk, REPLICA)


def copied(disk: Path, name: str) -> Path:
    copy = disk.with_name(name)
    copy.mkdir()
    (copy / "boots.json").write_bytes((disk / "boots.json").read_bytes())
    return copy


async def test_starts_of_one_disk_are_let_in_also_when_some_were_missed(
    peer: Peer, tmp_path: Path
) -> None:
    for heard in (True, True, False, False, True):
        boot = start(tmp_path / "disk")
        if heard:
            assert await peer.hear(boot) == ""
            assert await peer.hear(boot) == ""  # its stream broke and came again
            peer.restart()
            assert await peer.hear(boot) == ""


async def test_copy_of_an_earlier_start_is_refused_and_the_disk_goes_on(
    peer: Peer, tmp_path: Path
) -> None:
    await peer.hear(start(tmp_path / "disk"))
    copy = copied(tmp_path / "disk", "copy")
    await peer.hear(start(tmp_path / "disk"))
    peer.restart()
    assert await peer.hear(start(copy)) == "older-start"
    assert await peer.hear(start(copy)) == "other-history"
    assert await peer.hear(start(tmp_path / "disk")) == ""


async def test_copy_that_was_let_in_first_shuts_the_original_out(
    peer: Peer, tmp_path: Path
) -> None:
    original = start(tmp_path / "disk")
    await peer.hear(original)
    copy = copied(tmp_path / "disk", "copy")
    assert await peer.hear(start(copy)) == ""
    assert await peer.hear(original) == "older-start"
    assert await peer.hear(start(tmp_path / "disk")) == "older-start"
    assert await peer.hear(start(tmp_path / "disk")) == "other-history"


async def test_copy_beside_the_running_original_is_the_one_that_is_refused(
    peer: Peer, tmp_path: Path
) -> None:
    original = start(tmp_path / "disk")
    await peer.hear(original)
    copy = start(copied(tmp_path / "disk", "copy"))
    assert await peer.hear(copy, here=True) == "later"  # it may be about to be given up
    peer.around.answers[ADDRESS] = original.nonce
    assert await peer.hear(copy, here=True) == "runs-twice"
    assert await peer.hear(copy, address="127.0.0.1:2") == "runs-twice"
    assert await peer.hear(original) == ""


async def test_restart_before_the_old_stream_is_given_up_waits_and_is_let_in(
    peer: Peer, tmp_path: Path
) -> None:
    await peer.hear(start(tmp_path / "disk"))
    again = start(tmp_path / "disk")
    peer.around.answers[ADDRESS] = again.nonce
    assert await peer.hear(again, here=True) == "later"
    assert await peer.hear(again) == ""


async def test_disk_that_lost_what_it_acknowledged_is_refused(peer: Peer, tmp_path: Path) -> None:
    await peer.hear(start(tmp_path / "disk"))
    peer.around.heard = {1: Heard(term=4, acked=(4, 100), committed=90)}
    await peer.disks.save_promises()
    peer.restart()
    boot = start(tmp_path / "disk")
    assert await peer.hear(boot, term=3, last=100) == "forgotten"  # the vote file went back
    assert await peer.hear(boot, term=4, last=99) == "forgotten"  # still in the leader's term
    assert await peer.hear(boot, term=5, last=89) == "forgotten"  # committed
    # In a later term a leader may have removed what was never committed.
    assert await peer.hear(boot, term=5, last=90) == ""


async def test_version_without_boot_records_is_let_in(peer: Peer) -> None:
    assert await peer.hear(Boot(0, b"")) == ""
    assert peer.disks.is_last_start(REPLICA, peer_pb2.BootRecord())


async def test_more_missed_starts_than_a_record_holds_are_no_alarm(
    peer: Peer, tmp_path: Path
) -> None:
    boot = start(tmp_path / "disk")
    await peer.hear(boot)
    for _ in range(FORMER_MAX + 2):
        boot = start(tmp_path / "disk")
    assert len(boot.former) == FORMER_MAX
    assert await peer.hear(boot) == ""


@pytest.mark.parametrize("content", ["", "[]", '{"format_version": 1, "disks": {"n1@d": {}}}'])
def test_damaged_memory_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "known-disks.json").write_text(content)
    with pytest.raises(FatalError, match="nothing was changed"):
        Peer(tmp_path)


def test_directory_put_together_of_parts_is_refused(tmp_path: Path) -> None:
    begin_boot(tmp_path, "n1@other")
    with pytest.raises(FatalError, match="nothing was changed"):
        begin_boot(tmp_path, REPLICA)

"""Arriving packs as files: any chunking, any crash."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorepo.cluster.peer.held import HeldPacks
from quorepo.cluster.peer.pack_files import PackReader, PackWriter, sweep_temporary
from quorepo.internal.v1 import peer_pb2
from quorepo.storage.layout import GroupLayout, ensure_repository, promote_pack
from quorepo.storage.objectformat import ObjectFormat


def header_of(pack: bytes, index: bytes) -> peer_pb2.PackHeader:
    return peer_pb2.PackHeader(
        group=1,
        digest=hashlib.sha256(pack).digest(),
        index_digest=hashlib.sha256(index).digest(),
        pack_bytes=len(pack),
        index_bytes=len(index),
    )


@pytest.fixture
def layout(tmp_path: Path) -> GroupLayout:
    layout = GroupLayout(tmp_path, 1)
    layout.create()
    return layout


@settings(max_examples=25, deadline=None)
@given(
    pack=st.binary(min_size=1, max_size=200),
    index=st.binary(min_size=1, max_size=100),
    cuts=st.lists(st.integers(0, 300), max_size=8),
    offset=st.integers(0, 300),
    size=st.integers(1, 100),
)
def test_any_chunking_gives_the_same_files(
    tmp_path_factory: pytest.TempPathFactory,
    pack: bytes,
    index: bytes,
    cuts: list[int],
    offset: int,
    size: int,
) -> None:
    layout = GroupLayout(tmp_path_factory.mktemp("data"), 1)
    layout.quarantine.mkdir(parents=True)
    header = header_of(pack, index)
    joined = pack + index
    edges = [0, *sorted(min(cut, len(joined)) for cut in cuts), len(joined)]
    chunks = [joined[a:b] for a, b in itertools.pairwise(edges)]
    writer = PackWriter(layout, header)
    writer.write(chunks[: len(chunks) // 2])
    writer.finish(chunks[len(chunks) // 2 :])
    writer.discard()
    paths = layout.quarantine_paths(header.digest)
    assert [path.read_bytes() for path in paths] == [pack, index]
    assert sorted(layout.quarantine.iterdir()) == sorted(paths)
    reader = PackReader(layout, header, min(offset, len(joined)))
    reader.open()
    pieces = []
    while piece := reader.read(size):
        pieces.append(piece)
    reader.close()
    assert b"".join(pieces) == joined[offset:]


def test_restarted_arrival_forgets_what_came_before(layout: GroupLayout) -> None:
    header = header_of(b"right pack", b"right index")
    writer = PackWriter(layout, header)
    writer.write([b"wrong"])
    writer.restart()
    writer.finish([b"right packright index"])
    assert layout.quarantine_paths(header.digest)[0].read_bytes() == b"right pack"


CRASHING = """
import sys
from quorepo.cluster.peer.pack_files import PackWriter
from quorepo.internal.v1 import peer_pb2
from quorepo.storage.layout import GroupLayout
from pathlib import Path
header = peer_pb2.PackHeader.FromString(bytes.fromhex(sys.argv[2]))
writer = PackWriter(GroupLayout(Path(sys.argv[1]), 1), header)
writer.write([b"pack"])
writer.finish([b"index"])
print("survived")
"""


@pytest.mark.parametrize(
    ("edge", "held"),
    [
        ("before_fsync", False),
        ("before_rename", False),
        ("between_renames", False),
        ("between_renames=kill@2", True),  # both names are there; the scan makes them durable
        ("before_folder_fsync", True),
    ],
)
def test_kill_leaves_a_whole_pack_or_sweepable_rests(
    layout: GroupLayout, edge: str, held: bool
) -> None:
    header = header_of(b"pack", b"index")
    action = "" if "=" in edge else "=kill"
    command = [sys.executable, "-c", CRASHING, str(layout.data_dir)]
    ended = subprocess.run(
        [*command, header.SerializeToString().hex()],
        env={**os.environ, "QUOREPO_FAILPOINTS": f"peer.stage.{edge}{action}"},
        capture_output=True,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    sweep_temporary(layout)
    assert not list(layout.quarantine.glob("*.tmp"))
    assert HeldPacks.scan({1: layout}).has(1, header.digest) is held
    writer = PackWriter(layout, header)  # a later copy of the same pack is fine in any case
    writer.finish([b"packindex"])
    assert HeldPacks.scan({1: layout}).digests(1) == {header.digest}


def test_held_packs_know_quarantine_and_repositories(layout: GroupLayout) -> None:
    for number in range(3):
        pack = bytes([number])
        writer = PackWriter(layout, header_of(pack, b"index"))
        writer.finish([pack, b"index"])
    ensure_repository(layout, "r1", ObjectFormat.SHA1)
    promote_pack(layout, "r1", hashlib.sha256(b"\0").digest())
    layout.quarantine_paths(hashlib.sha256(b"\1").digest())[1].unlink()  # half a pack
    held = HeldPacks.scan({1: layout})
    wanted = {hashlib.sha256(pack).digest() for pack in (b"\0", b"\2")}
    assert held.digests(1) == wanted
    assert not held.has(2, next(iter(wanted)))
    held.discard(1, hashlib.sha256(b"\2").digest())
    held.add(0, b"x")
    assert held.digests(1) == {hashlib.sha256(b"\0").digest()}
    assert held.digests(0) == {b"x"}


def test_removed_pack_is_still_given_to_whoever_catches_up(layout: GroupLayout) -> None:
    from quorepo.storage.layout import retire_pack

    header = header_of(b"PACK", b"index")
    for path, content in zip(
        layout.quarantine_paths(header.digest), (b"PACK", b"index"), strict=True
    ):
        path.write_bytes(content)
    ensure_repository(layout, "r", ObjectFormat.SHA1)
    promote_pack(layout, "r", header.digest)
    retire_pack(layout, "r", header.digest)
    header.repository_id = "r"
    reader = PackReader(layout, header)
    reader.open()
    assert reader.read(100) == b"PACKindex"
    reader.close()
    assert HeldPacks.scan({1: layout}).has(1, header.digest)

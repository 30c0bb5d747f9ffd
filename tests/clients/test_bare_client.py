"""A client that offers no capability at all: no side-band, no deltas by offset, no thin packs.

go-git and home-made tools come close to it. What is sent must stand for itself.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from support.edge import EdgeUnderTest
from support.git import WorkTree, git, refs_of
from support.raw_http import FETCH_TYPE, PUSH_TYPE, ZERO, packet, packets, request

OFS_DELTA, REF_DELTA = 6, 7


def fetch(server: EdgeUnderTest, path: str, wants: list[str], haves: list[str]) -> bytes:
    """Everything after the acknowledgment."""
    body = b"".join(packet(f"want {oid}\n".encode()) for oid in wants) + b"0000"
    body += b"".join(packet(f"have {oid}\n".encode()) for oid in haves) + packet(b"done\n")
    answer = request(server, "POST", f"/{path}/git-upload-pack", body, {"Content-Type": FETCH_TYPE})
    assert answer.status == 200
    acknowledged = f"ACK {haves[0]}\n" if haves else "NAK\n"
    first = packet(acknowledged.encode())
    assert answer.body.startswith(first + b"PACK")
    return answer.body[len(first) :]


def entry_types(pack: bytes) -> list[int]:
    """The type of every entry, from the entries themselves."""
    types = []
    position = 12
    for _ in range(int.from_bytes(pack[8:12], "big")):
        first = byte = pack[position]
        position += 1
        while byte & 0x80:
            byte = pack[position]
            position += 1
        types.append(first >> 4 & 7)
        if types[-1] == REF_DELTA:
            position += 20
        elif types[-1] == OFS_DELTA:
            while pack[position] & 0x80:
                position += 1
            position += 1
        inflate = zlib.decompressobj()
        inflate.decompress(pack[position:])
        position = len(pack) - len(inflate.unused_data)
    assert position == len(pack) - 20
    return types


def index(pack: bytes, directory: Path) -> Path:
    """A repository with the objects of the pack; every delta's base has to be in it."""
    git("init", "--quiet", "--bare", str(directory))
    (directory / "in.pack").write_bytes(pack)
    git("index-pack", str(directory / "in.pack"), cwd=directory)
    for file in ("in.pack", "in.idx"):
        (directory / file).rename(directory / "objects/pack" / f"pack-{file}")
    return directory


def test_a_clone_has_no_offsets_and_no_frames(
    server: EdgeUnderTest, work: WorkTree, path: str, tmp_path: Path
) -> None:
    pack = fetch(server, path, [work.head()], [])
    assert OFS_DELTA not in entry_types(pack)
    stored = index(pack, tmp_path / "bare")
    git("update-ref", "refs/heads/main", work.head(), cwd=stored)
    git("fsck", "--full", "--strict", cwd=stored)


@pytest.mark.parametrize("behind", [1, 4])
def test_a_fetch_stands_for_itself(
    server: EdgeUnderTest, work: WorkTree, path: str, behind: int, tmp_path: Path
) -> None:
    """`index-pack` without --fix-thin finds the base of every delta."""
    have = work.git("rev-parse", f"HEAD~{behind}").stdout.strip()
    pack = fetch(server, path, [work.head()], [have])
    assert OFS_DELTA not in entry_types(pack)
    stored = index(pack, tmp_path / "bare")
    new = work.git("rev-list", "--objects", "HEAD", f"^{have}").stdout.splitlines()
    kinds = git("cat-file", "--batch-all-objects", "--batch-check", cwd=stored).stdout
    assert {line.split()[0] for line in new} <= {line.split()[0] for line in kinds.splitlines()}


def test_offsets_are_sent_to_those_who_take_them(
    server: EdgeUnderTest, work: WorkTree, path: str
) -> None:
    """The counter-check: this history has deltas that a bare client must not get."""
    body = packet(f"want {work.head()} ofs-delta\n".encode()) + b"0000" + packet(b"done\n")
    answer = request(server, "POST", f"/{path}/git-upload-pack", body, {"Content-Type": FETCH_TYPE})
    assert OFS_DELTA in entry_types(answer.body[8:])


def test_a_push_of_whole_objects_is_taken_and_answered_with_silence(
    server: EdgeUnderTest, work: WorkTree, path: str, tmp_path: Path
) -> None:
    """Without report-status there is no word for success: an empty answer."""
    other = path + "-bare"
    pack = fetch(server, path, [work.head()], [])
    command = packet(f"{ZERO} {work.head()} refs/heads/main\n".encode()) + b"0000"
    answer = request(
        server, "POST", f"/{other}/git-receive-pack", command + pack, {"Content-Type": PUSH_TYPE}
    )
    assert (answer.status, answer.body) == (200, b"")
    assert refs_of(server.url(other))["refs/heads/main"] == work.head()


def test_a_refusal_is_an_err_line(server: EdgeUnderTest, work: WorkTree, path: str) -> None:
    body = packet(f"want {'ab' * 20}\n".encode()) + b"0000" + packet(b"done\n")
    answer = request(server, "POST", f"/{path}/git-upload-pack", body, {"Content-Type": FETCH_TYPE})
    assert packets(answer.body) == [f"ERR upload-pack: not our ref {'ab' * 20}".encode()]

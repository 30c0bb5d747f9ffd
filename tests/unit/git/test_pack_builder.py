"""The form of entries: headers, distances, and deltas that lead from pack to pack."""

from __future__ import annotations

import errno
import io
import itertools
import os
import zlib
from pathlib import Path

import pytest
from dulwich.pack import create_delta, pack_object_header
from hypothesis import given
from hypothesis import strategies as st
from support.git import git
from support.git_http import StoredRepository

from quorepo.storage.errors import StorageFull
from quorepo.storage.git import upload_pack
from quorepo.storage.git.commits import CommitReader
from quorepo.storage.git.fetch_request import FetchRequest, Negotiation
from quorepo.storage.git.negotiation import negotiate
from quorepo.storage.git.pack_builder import (
    build_pack,
    encode_distance,
    encode_header,
    write_pack,
)
from quorepo.storage.git.selection import Selection
from quorepo.storage.objectformat import ObjectFormat
from quorepo.storage.packfile import OFS_DELTA, PackFile, parse_entry_header
from quorepo.storage.packs import PackSet

SHA1 = ObjectFormat.SHA1


@given(type_num=st.sampled_from([1, 2, 3, 4]), size=st.integers(0, 1 << 40))
def test_headers_are_read_back(type_num: int, size: int) -> None:
    header = parse_entry_header(encode_header(type_num, size) + b"\0", 0, 20)
    assert (header.type_num, header.size) == (type_num, size)


@given(distance=st.integers(1, 1 << 50))
def test_distances_are_read_back(distance: int) -> None:
    entry = encode_header(OFS_DELTA, 9) + encode_distance(distance)
    assert parse_entry_header(entry, 0, 20).base_offset == -distance


def pack_of(folder: Path, name: str, base: bytes, result: bytes, *others: bytes) -> PackFile:
    """`result` as an OFS_DELTA of `base`, and whole blobs."""
    delta = b"".join(create_delta(base, result))
    first = bytes(pack_object_header(3, None, len(base), SHA1.dulwich)) + zlib.compress(base)
    header = pack_object_header(OFS_DELTA, len(first), len(delta), SHA1.dulwich)
    entries = [first, bytes(header) + zlib.compress(delta)]
    for other in others:
        header = pack_object_header(3, None, len(other), SHA1.dulwich)
        entries.append(bytes(header) + zlib.compress(other))
    body = b"PACK" + (2).to_bytes(4, "big") + len(entries).to_bytes(4, "big") + b"".join(entries)
    path = folder / f"{name}.pack"
    path.write_bytes(body + SHA1.new_hash(body).digest())
    git("index-pack", "-o", str(path.with_suffix(".idx")), str(path), cwd=folder)
    return PackFile(path, path.with_suffix(".idx"), b"", SHA1)


@pytest.mark.parametrize("ofs_delta", [False, True])
def test_deltas_of_each_other_in_two_packs_are_no_trap(tmp_path: Path, ofs_delta: bool) -> None:
    """x is a delta of y in one pack, y one of x in the other: neither may wait for the other."""
    x, y, z, w = b"x" * 40 + b"1\n", b"x" * 40 + b"22\n", b"only in b\n", b"only in a\n"
    packs = [pack_of(tmp_path, "a", y, x, w), pack_of(tmp_path, "b", x, y, z)]
    oids = [SHA1.object_id(b"blob", content) for content in (x, y, z)]
    for number, order in enumerate(itertools.permutations(oids)):
        # Looking up z makes pack b the first to be searched, so the order of lookups matters.
        for pair in itertools.permutations(packs):
            out = tmp_path / f"out-{number}.pack"
            with out.open("wb") as file:
                chosen = dict.fromkeys(order, 0)
                result = write_pack(
                    file,
                    PackSet(pair, SHA1),
                    Selection(chosen),
                    ofs_delta=ofs_delta,
                    thin=False,
                )
            assert result.pack_bytes == out.stat().st_size
            git("index-pack", "-o", str(out.with_suffix(".idx")), str(out), cwd=tmp_path)
            sent = PackFile(out, out.with_suffix(".idx"), b"", SHA1)
            assert set(sent.iter_oids()) == set(oids)


def test_progress_is_told_at_most_every_half_second(
    stored: StoredRepository, tmp_path: Path
) -> None:
    view = stored.view()
    request = FetchRequest(version=2, wants=tuple(view.tips()), done=True)
    ticks = itertools.count()
    told: list[str] = []
    reader = CommitReader(stored.objects())
    build_pack(
        reader, request, Negotiation(), [], tmp_path / "out", told.append, lambda: next(ticks) / 10
    )
    assert told[-1].startswith("Total ")
    assert any(line.startswith("Enumerating objects: ") and line[-1] == "\r" for line in told)
    assert 4 < len(told) < next(ticks) / 4


def test_nothing_is_told_of_work_that_is_over_at_once(
    stored: StoredRepository, tmp_path: Path
) -> None:
    request = FetchRequest(version=2, wants=tuple(stored.view().tips()), done=True)
    told: list[str] = []
    reader = CommitReader(stored.objects())
    build_pack(reader, request, Negotiation(), [], tmp_path / "out", told.append, lambda: 0.0)
    assert told == []


def test_failed_build_leaves_no_file(stored: StoredRepository, tmp_path: Path) -> None:
    request = FetchRequest(version=2, wants=tuple(stored.view().tips()), done=True)

    def fail(line: str) -> None:
        if line.startswith("Total"):
            raise ValueError("told")

    with pytest.raises(ValueError, match="told"):
        build_pack(
            CommitReader(stored.objects()),
            request,
            Negotiation(),
            [],
            tmp_path / "out",
            fail,
            itertools.count().__next__,
        )
    assert list(tmp_path.glob("out*")) == []


def test_full_disk_is_told_as_such(stored: StoredRepository, tmp_path: Path) -> None:
    request = FetchRequest(version=2, wants=tuple(stored.view().tips()), done=True)

    def fail(line: str) -> None:
        if line.startswith("Total"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    reader = CommitReader(stored.objects())
    with pytest.raises(StorageFull, match="No space left"):
        build_pack(
            reader, request, Negotiation(), [], tmp_path / "out", fail, itertools.count().__next__
        )
    assert not (tmp_path / "out").exists()


def test_whole_packs_are_copied_verbatim(history: Path, tmp_path: Path) -> None:
    single = tmp_path / "single.git"
    git("clone", "--quiet", "--bare", f"file://{history}", str(single))
    git("repack", "-adq", cwd=single)
    stored = StoredRepository(single, tmp_path / "data")
    view = stored.view()
    request = FetchRequest(version=2, wants=tuple(view.tips()), done=True, ofs_delta=True)
    reader = CommitReader(stored.objects())
    assert negotiate(reader, request, view.tips()) == Negotiation()
    build_pack(reader, request, Negotiation(), [], tmp_path / "out")
    (pack,) = (single / "objects/pack").glob("*.pack")
    assert (tmp_path / "out").read_bytes() == pack.read_bytes()
    assert upload_pack.job_arguments(request, view)["tags"] == []


def test_nothing_to_send_is_an_empty_pack(stored: StoredRepository) -> None:
    file = io.BytesIO()
    result = write_pack(file, stored.objects(), Selection(), ofs_delta=True, thin=True)
    assert (result.objects, result.pack_bytes) == (0, len(file.getvalue()))
    assert file.getvalue()[:12] == b"PACK\0\0\0\2\0\0\0\0"


@pytest.mark.parametrize("thin", [False, True])
def test_what_is_stored_whole_is_sent_as_a_delta_of_what_the_client_has(
    stored: StoredRepository, tmp_path: Path, thin: bool
) -> None:
    """git stores the newest version whole and older ones as deltas of it."""
    source = tmp_path / "large.git"
    git("clone", "--quiet", "--bare", str(stored.source), str(source))
    text = "".join(f"a line that is number {number}\n" for number in range(9000))
    stream = []
    for number in range(6):
        text = text.replace(f"number {number * 1000}\n", f"number {number * 1000}!\n")
        stream.append(
            f"commit refs/heads/grow\nmark :{number + 1}\ncommitter C <c@x> {number} +0000\n"
        )
        stream.append("data 1\nc\n" + (f"from :{number}\n" if number else ""))
        stream.append(f"M 644 inline dir/text\ndata {len(text)}\n{text}\n")
    git("fast-import", "--quiet", cwd=source, stdin="".join(stream).encode())
    git("repack", "-adq", cwd=source)
    repository = StoredRepository(source, tmp_path / "data")
    commits = git("rev-list", "grow", cwd=source).stdout.split()
    request = FetchRequest(
        version=2,
        wants=(bytes.fromhex(commits[0]),),
        haves=(bytes.fromhex(commits[3]),),
        done=True,
        ofs_delta=True,
        thin_pack=thin,
    )
    reader = CommitReader(repository.objects())
    negotiation = negotiate(reader, request, repository.view().tips())
    out = tmp_path / "out.pack"
    result = build_pack(reader, request, negotiation, [], out)
    assert result.objects == 12
    whole = len(zlib.compress(text.encode()))
    assert (result.pack_bytes < 2000) is thin, result
    assert result.pack_bytes < whole + 2000
    client = tmp_path / "client.git"
    git("init", "--quiet", "--bare", str(client))
    git("fetch", "--quiet", str(source), f"{commits[3]}:refs/heads/had", cwd=client)
    options = ["--strict", "--stdin", *(["--fix-thin"] if thin else [])]
    git("index-pack", *options, cwd=client, stdin=out.read_bytes())
    git("rev-list", "--objects", commits[0], cwd=client)

"""For any history and any request: what C git sends, or what completes the client; no more.

The oracle is `git upload-pack --stateless-rpc` on the same repository, given the same bytes.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.git import ENVIRONMENT, git
from support.git_http import StoredRepository

from quorepo.storage.git import pack_changes, pack_part, pack_writer, whole_pack
from quorepo.storage.git.pack_changes_build import write_pack_changes
from quorepo.storage.git.pktline import FLUSH, Marker, PktLineReader, encode
from quorepo.storage.objectformat import ObjectFormat
from quorepo.storage.packfile import OFS_DELTA, REF_DELTA, PackFile

PATHS = ("a", "b", "d/a", "d/e/f", "d/e/g", "h/i")
TEXT = "".join(f"line {number}\n" for number in range(60))
CONFIG = ("uploadpack.allowAnySHA1InWant=true", "uploadpack.allowFilter=true")


@dataclass(frozen=True)
class Change:
    """One commit: parents as indexes of commits before it, seconds, files (None: deleted)."""

    parents: tuple[int, ...]
    date: int
    files: tuple[tuple[str, int | None], ...]


@st.composite
def histories(draw: st.DrawFn) -> list[Change]:
    changes: list[Change] = []
    for number in range(draw(st.integers(1, 9))):
        parents = draw(
            st.lists(st.integers(0, number - 1), unique=True, max_size=3) if number else st.just([])
        )
        # Committers' clocks disagree now and then.
        date = 1_700_000_000 + number * 100 + draw(st.sampled_from([0, 0, 0, -5000, 5000]))
        files = draw(
            st.lists(
                st.tuples(st.sampled_from(PATHS), st.one_of(st.none(), st.integers(0, 6))),
                max_size=4,
                unique_by=lambda file: file[0],
            )
        )
        changes.append(Change(tuple(parents), date, tuple(files)))
    return changes


def make(changes: list[Change], tagged: list[int], folder: Path) -> list[str]:
    """A bare repository with one branch per commit, in one pack per half; returns the commits."""
    git("init", "--quiet", "--bare", "--initial-branch=b0", str(folder))
    for part in (range(0, len(changes), 2), range(1, len(changes), 2)):
        numbers = range(max(part, default=-1) + 1) if part.start == 0 else range(len(changes))
        stream = []
        for number in numbers:
            change = changes[number]
            stream.append(f"commit refs/heads/b{number}\nmark :{number + 1}\n")
            stream.append(f"committer C <c@x> {change.date} +0000\ndata 1\n{number}")
            for position, parent in enumerate(change.parents):
                stream.append(f"\n{'merge' if position else 'from'} :{parent + 1}")
            for path, content in change.files:
                if content is None:
                    stream.append(f"\nD {path}")
                else:
                    text = TEXT.replace(f"line {content * 9}\n", f"LINE {content} {path}\n")
                    stream.append(f"\nM 644 inline {path}\ndata {len(text)}\n{text}")
            stream.append("\n")
        for number in tagged:
            if number in numbers:
                stream.append(f"tag t{number}\nfrom :{number + 1}\n")
                stream.append("tagger T <t@x> 1700000000 +0000\ndata 1\nt\n")
        git(
            "-c", "fastimport.unpackLimit=0", "fast-import", "--quiet", "--force", "--done",
            cwd=folder, stdin=("".join(stream) + "done\n").encode(),
        )  # fmt: skip
    heads = git("for-each-ref", "--format=%(refname:short) %(objectname)", "refs/heads", cwd=folder)
    found = dict(line.split() for line in heads.stdout.splitlines())
    return [found[f"b{number}"] for number in range(len(changes))]


@contextmanager
def stored(
    changes: list[Change], tagged: list[int], hidden: tuple[bytes, ...] = ()
) -> Iterator[tuple[StoredRepository, list[str]]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commits = make(changes, tagged, folder / "source")
        yield StoredRepository(folder / "source", folder / "data", hidden), commits


@contextmanager
def tables_of_changes(repository: StoredRepository) -> Iterator[None]:
    """Tables of what commits changed are there, for packs of any size, and used for any range."""
    with ExitStack() as stack:
        for module, name, value in (
            (pack_changes, "CHANGES_OBJECTS_MIN", 0),
            (pack_part, "_COMMITS_MIN", 1),
            (pack_part, "_NEW_DELTA_BYTES_MIN", 0),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        objects = repository.objects()
        for pack in objects.packs:
            write_pack_changes(objects, pack)
        yield


def ask(lines: list[str], haves: list[str]) -> bytes:
    wants = b"".join(encode(line.encode() + b"\n") for line in lines)
    tail = b"".join(encode(f"have {oid}\n".encode()) for oid in haves)
    return wants + FLUSH + tail + encode(b"done\n")


def answer_of_git(stored: StoredRepository, body: bytes) -> bytes:
    options = [part for setting in CONFIG for part in ("-c", setting)]
    done = subprocess.run(
        ["git", *options, "upload-pack", "--stateless-rpc", str(stored.source)],
        input=body, env=ENVIRONMENT, capture_output=True, check=False,
    )  # fmt: skip
    return done.stdout


def split(answer: bytes) -> tuple[set[bytes], bytes]:
    """(shallow lines, pack) of an answer without side-band."""
    reader = PktLineReader()
    reader.feed(answer)
    shallow: set[bytes] = set()
    while (packet := reader.next_packet()) is not None:
        if isinstance(packet, Marker):
            continue
        if b"shallow" in packet:
            shallow.add(packet.strip())
        elif not packet.endswith(b"common\n"):
            break
    return shallow, reader.take_rest()


def oids_of(pack: bytes, folder: Path) -> set[str]:
    """Fails when the pack does not stand alone."""
    file = folder / f"check-{len(pack)}.pack"
    file.write_bytes(pack)
    git("index-pack", "-o", str(file.with_suffix(".idx")), str(file), cwd=folder)
    index = PackFile(file, file.with_suffix(".idx"), b"", ObjectFormat.SHA1)
    return {oid.hex() for oid in index.iter_oids()}


def closure(stored: StoredRepository, wants: list[str]) -> set[str]:
    listing = git(
        "rev-list", "--objects", "--no-object-names", "--stdin", cwd=stored.source,
        stdin="\n".join(wants).encode(),
    )  # fmt: skip
    return {*listing.stdout.split(), *wants}


# `QUOREPO_EXAMPLES=500 pytest …` looks longer.
HISTORY = settings(
    max_examples=int(os.environ.get("QUOREPO_EXAMPLES", "25")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@given(changes=histories(), data=st.data())
@HISTORY
def test_wants_and_haves(changes: list[Change], data: st.DataObject) -> None:
    number = st.integers(0, len(changes) - 1)
    tagged = data.draw(st.lists(number, unique=True, max_size=2), "tagged")
    with ExitStack() as stack, stored(changes, tagged) as (repository, commits):
        if data.draw(st.booleans(), "one pack"):
            git("repack", "-adq", "--depth=20", cwd=repository.source)
            repository.refresh()
        if data.draw(st.booleans(), "tables"):
            stack.enter_context(tables_of_changes(repository))
        wants = [commits[n] for n in data.draw(st.lists(number, min_size=1, max_size=3), "wants")]
        haves = [commits[n] for n in data.draw(st.lists(number, max_size=3), "haves")]
        ofs = data.draw(st.sampled_from(["", " ofs-delta"]), "capabilities")
        wanted = [f"want {oid}" for oid in wants]
        wanted[0] += " multi_ack_detailed" + ofs
        sent = oids_of(split(repository.answer(0, ask(wanted, haves)))[1], repository.out_folder)
        needed = closure(repository, wants)
        had = closure(repository, haves) if haves else set()
        assert needed - had <= sent <= needed
        wanted[0] += " thin-pack"
        thin = split(repository.answer(0, ask(wanted, haves)))[1]
        client = repository.out_folder / "client"
        git("init", "--quiet", "--bare", str(client))
        packed = subprocess.run(
            ["git", "pack-objects", "--stdout", "-q"], input="\n".join(sorted(had)).encode(),
            cwd=repository.source, env=ENVIRONMENT, capture_output=True, check=True,
        ).stdout  # fmt: skip
        for pack in (packed, thin):
            subprocess.run(
                ["git", "index-pack", "--strict", "--stdin", "--fix-thin"], input=pack,
                cwd=client, env=ENVIRONMENT, capture_output=True, check=True,
            )  # fmt: skip
        git("rev-list", "--objects", *wants, cwd=client)


@given(changes=histories(), data=st.data())
@HISTORY
def test_a_partial_clone_is_never_sent_a_delta_of_what_it_lacks(
    changes: list[Change], data: st.DataObject
) -> None:
    number = st.integers(0, len(changes) - 1)
    with ExitStack() as stack, stored(changes, []) as (repository, commits):
        if data.draw(st.booleans(), "one pack"):
            git("repack", "-adq", "--depth=20", cwd=repository.source)
            repository.refresh()
        if data.draw(st.booleans(), "tables"):
            stack.enter_context(tables_of_changes(repository))
        wants = [commits[n] for n in data.draw(st.lists(number, min_size=1, max_size=3), "wants")]
        haves = [commits[n] for n in data.draw(st.lists(number, min_size=1, max_size=3), "haves")]
        lines = [f"want {oid}" for oid in [*wants, "filter blob:none"]]
        lines[-1] = lines[-1].removeprefix("want ")
        lines[0] += " multi_ack_detailed ofs-delta thin-pack filter"
        sent = split(repository.answer(0, ask(lines, haves)))[1]
        had, needed = (without_blobs(repository, tips) for tips in (haves, wants))
        client = repository.out_folder / "client"
        git("init", "--quiet", "--bare", str(client))
        packed = subprocess.run(
            ["git", "pack-objects", "--stdout", "-q"], input="\n".join(sorted(had)).encode(),
            cwd=repository.source, env=ENVIRONMENT, capture_output=True, check=True,
        ).stdout  # fmt: skip
        for pack in (packed, sent):
            subprocess.run(
                ["git", "index-pack", "--stdin", "--fix-thin"], input=pack,
                cwd=client, env=ENVIRONMENT, capture_output=True, check=True,
            )  # fmt: skip
        listing = git(
            "cat-file", "--batch-all-objects", "--batch-check=%(objectname)", cwd=client
        ).stdout.split()
        assert set(listing) == had | needed


def without_blobs(stored: StoredRepository, tips: list[str]) -> set[str]:
    """What `tips` reach, without files."""
    checked = git(
        "cat-file", "--batch-check=%(objectname) %(objecttype)", cwd=stored.source,
        stdin="\n".join(sorted(closure(stored, tips))).encode(),
    ).stdout  # fmt: skip
    return {line.split()[0] for line in checked.splitlines() if not line.endswith("blob")}


@given(changes=histories(), data=st.data())
@HISTORY
def test_packs_sent_whole_show_nothing_hidden(changes: list[Change], data: st.DataObject) -> None:
    number = st.integers(0, len(changes) - 1)
    tagged = data.draw(st.lists(number, unique=True, max_size=2), "tagged")
    hidden = data.draw(st.lists(number, unique=True, max_size=len(changes) - 1), "hidden")
    names = tuple(f"refs/heads/b{n}".encode() for n in hidden)
    with ExitStack() as stack, stored(changes, tagged, names) as (repository, _commits):
        for name, value in (("_OBJECTS_MIN", 1), ("_SHARE_MIN", 0), ("_WANTED_MIN", 0)):
            stack.enter_context(mock.patch.object(whole_pack, name, value))
        stack.enter_context(mock.patch.object(pack_writer, "_REFERENCE_BYTES_MIN", 0))
        if data.draw(st.booleans(), "one pack"):
            git("repack", "-adq", cwd=repository.source)
            repository.refresh()
        tips = [oid.hex() for oid in repository.view().tips()]
        wants = data.draw(st.lists(st.sampled_from(tips), min_size=1, max_size=3), "wants")
        lines = [f"want {oid}" for oid in wants]
        lines[0] += " ofs-delta" + data.draw(st.sampled_from(["", " include-tag"]), "tags")
        pack = split(repository.answer(0, ask(lines, [])))[1]
        sent = oids_of(pack, repository.out_folder)
        assert int.from_bytes(pack[8:12], "big") == len(sent)
        assert closure(repository, wants) <= sent <= closure(repository, tips)
        theirs = split(answer_of_git(repository, ask(lines, [])))[1]
        assert oids_of(theirs, repository.out_folder) <= sent | closure(repository, wants)


DEEPEN = st.one_of(
    st.integers(1, 5).map(lambda depth: [f"deepen {depth}"]),
    st.integers(-3, 12).map(lambda step: [f"deepen-since {1_700_000_000 + step * 100}"]),
    st.integers(0, 8).map(lambda number: [f"deepen-not b{number}"]),
)
FILTERS = st.one_of(
    st.sampled_from(["blob:none", "blob:limit=500", "combine:tree:2+blob:none"]),
    st.integers(0, 3).map(lambda depth: f"tree:{depth}"),
    st.sampled_from(["tree", "blob", "commit"]).map(lambda kind: f"object:type={kind}"),
)


@given(changes=histories(), data=st.data())
@HISTORY
def test_depths_and_filters_give_what_git_gives(changes: list[Change], data: st.DataObject) -> None:
    number = st.integers(0, len(changes) - 1)
    tagged = data.draw(st.lists(number, unique=True, max_size=2), "tagged")
    with stored(changes, tagged) as (repository, commits):
        wants = [commits[n] for n in data.draw(st.lists(number, min_size=1, max_size=3), "wants")]
        lines = [f"want {oid}" for oid in wants]
        lines[0] += " ofs-delta filter" + data.draw(st.sampled_from(["", " include-tag"]), "tags")
        deepen = data.draw(st.one_of(st.just([]), DEEPEN), "deepen")
        filters = data.draw(
            st.one_of(st.just([]), FILTERS.map(lambda f: [f"filter {f}"])), "filter"
        )
        if any(change.date % 100 or abs(change.date - 1_700_000_000) > 2000 for change in changes):
            # Where dates lie, git and we may draw another border in time; both are right.
            deepen = [line for line in deepen if not line.startswith("deepen-since")]
        body = ask([*lines, *deepen, *filters], [])
        ours, theirs = repository.answer(0, body), answer_of_git(repository, body)
        if ours[4:8] == b"ERR ":
            assert b"PACK" not in theirs, (ours, theirs)
            return
        our_shallow, our_pack = split(ours)
        their_shallow, their_pack = split(theirs)
        assert our_shallow == their_shallow
        assert oids_of(our_pack, repository.out_folder) == oids_of(
            their_pack, repository.out_folder
        )


@given(changes=histories(), data=st.data())
@HISTORY
def test_haves_filters_and_depths_together(changes: list[Change], data: st.DataObject) -> None:
    """A client that has something and wants a part: all of that part that it lacks, and nothing but
    that part. What the part is git says, to a client that has nothing."""
    number = st.integers(0, len(changes) - 1)
    with ExitStack() as stack, stored(changes, []) as (repository, commits):
        if data.draw(st.booleans(), "one pack"):
            git("repack", "-adq", "--depth=20", cwd=repository.source)
            repository.refresh()
        if data.draw(st.booleans(), "tables"):
            stack.enter_context(tables_of_changes(repository))
        wants = [commits[n] for n in data.draw(st.lists(number, min_size=1, max_size=3), "wants")]
        haves = [commits[n] for n in data.draw(st.lists(number, min_size=1, max_size=3), "haves")]
        depth = data.draw(st.one_of(st.just([]), st.integers(1, 5).map(lambda d: [f"deepen {d}"])))
        filters = data.draw(st.one_of(st.just([]), FILTERS.map(lambda f: [f"filter {f}"])))
        lines = [f"want {oid}" for oid in wants]
        lines[0] += " multi_ack_detailed ofs-delta filter"
        part = split(answer_of_git(repository, ask([*lines, *depth, *filters], [])))[1]
        whole = oids_of(part, repository.out_folder)
        body = ask([*lines, *depth, *filters], haves)
        for answer in (repository.answer(0, body), answer_of_git(repository, body)):
            pack = split(answer)[1]
            sent = oids_of(pack, repository.out_folder)
            assert whole - closure(repository, haves) <= sent <= whole


def test_client_without_ofs_delta_gets_none() -> None:
    """And one without thin-pack gets no delta whose base it would have to have."""
    changes = [
        Change((number - 1,) if number else (), 1_700_000_000 + number, (("a", number % 7),))
        for number in range(9)
    ]
    with stored(changes, []) as (repository, commits):
        kinds = {}
        for capability in ("", " ofs-delta"):
            body = ask([f"want {commits[-1]} agent=x{capability}"], [commits[2]])
            pack = split(repository.answer(0, body))[1]
            oids_of(pack, repository.out_folder)
            file = repository.out_folder / f"check-{len(pack)}.pack"
            packed = PackFile(file, file.with_suffix(".idx"), b"", ObjectFormat.SHA1)
            kinds[capability] = {packed.header(o).type_num for o in packed.iter_offsets()}
        assert OFS_DELTA not in kinds[""]
        assert REF_DELTA not in kinds[" ofs-delta"]
        assert {REF_DELTA} <= kinds[""]
        assert {OFS_DELTA} <= kinds[" ofs-delta"]


@given(changes=histories(), data=st.data())
@HISTORY
def test_a_clone_without_files_is_all_but_them_and_shows_nothing_hidden(
    changes: list[Change], data: st.DataObject
) -> None:
    number = st.integers(0, len(changes) - 1)
    hidden = data.draw(st.lists(number, unique=True, max_size=len(changes) - 1), "hidden")
    names = tuple(f"refs/heads/b{n}".encode() for n in hidden)
    with stored(changes, [], names) as (repository, _commits):
        if data.draw(st.booleans(), "one pack"):
            git("repack", "-adq", cwd=repository.source)
            repository.refresh()
        tips = [oid.hex() for oid in repository.view().tips()]
        wants = data.draw(st.lists(st.sampled_from(tips), min_size=1, max_size=3), "wants")
        lines = [f"want {oid}" for oid in [*wants, "filter blob:none"]]
        lines[-1] = lines[-1].removeprefix("want ")
        lines[0] += " ofs-delta filter"
        with ExitStack() as stack:
            stack.enter_context(tables_of_changes(repository))
            for name, value in (("_OBJECTS_MIN", 1), ("_SHARE_MIN", 0), ("_WANTED_MIN", 0)):
                stack.enter_context(mock.patch.object(whole_pack, name, value))
            pack = split(repository.answer(0, ask(lines, [])))[1]
        sent = oids_of(pack, repository.out_folder)
        assert int.from_bytes(pack[8:12], "big") == len(sent)
        assert without_blobs(repository, wants) <= sent <= without_blobs(repository, tips)

"""Torn ends are cut, damage is refused, and nothing wrong is ever read."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from quorepo.cluster.raft.journal import Journal
from quorepo.cluster.raft.segment import BATCH_BYTES
from quorepo.storage.errors import FatalError

FAST_DIRECTORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
SECTOR_BYTES = 512

State = dict[int, list[tuple[bytes, int, int]]]


def state_of(journal: Journal) -> State:
    state: State = {}
    for group in journal.groups():
        first, last = journal.first_index(group), journal.last_index(group)
        state[group] = journal.read(group, first, last + 1, 1 << 30)
    return state


@dataclasses.dataclass
class Written:
    """A journal that was written to, and everything it ever held."""

    directory: Path
    states: list[State]  # after each operation, the oldest first
    acked: int  # position in `states` of the last one that was synced
    last_segment: Path
    header_bytes: int  # of the last segment
    batches: list[
        tuple[int, int]
    ]  # of the last segment: its length after a sync, position in `states`

    @property
    def last_batch_offset(self) -> int:
        return self.batches[-2][0] if len(self.batches) > 1 else self.header_bytes


def write(directory: Path, seed: int, *, close: bool) -> Written:
    """Random operations on two groups; without `close` the process "dies" after its last sync."""
    random_ = random.Random(seed)
    journal = Journal.open(directory, segment_bytes_max=3000)
    states: list[State] = [{}]
    batches: list[tuple[int, int]] = []
    path = journal._writer.segment.path
    header_bytes = 0
    operations = random_.randint(4, 40)
    for step in range(operations):
        if path != journal._writer.segment.path or step == 0:
            path = journal._writer.segment.path
            header_bytes = journal._writer.written_bytes
            batches.clear()
        group = random_.choice((1, 2))
        last = journal.last_index(group)
        choice = random_.random()
        if choice < 0.12 and last > 1:
            journal.truncate_from(group, random_.randint(max(1, last - 3), last))
        else:
            data = random_.randbytes(random_.choice((0, 5, 60, 700)))
            journal.append(group, last + 1, journal.term_at(group, last) or 1, data)
        states.append(state_of(journal))
        if random_.random() < 0.3 or step == operations - 1:
            journal.sync()
            if path == journal._writer.segment.path:
                batches.append((journal._writer.written_bytes, len(states) - 1))
    if path != journal._writer.segment.path:  # the last sync filled its segment
        path = journal._writer.segment.path
        header_bytes = journal._writer.written_bytes
        batches = []
    if close:
        journal.close()
        batches.append((path.stat().st_size, len(states) - 1))
    else:
        journal._release()
    return Written(directory, states, len(states) - 1, path, header_bytes, batches)


@contextlib.contextmanager
def written(seed: int, *, close: bool) -> Iterator[Written]:
    with tempfile.TemporaryDirectory(dir=FAST_DIRECTORY) as name:
        yield write(Path(name), seed, close=close)


def reopened(directory: Path) -> State | None:
    """What the journal holds after another start; None when it refuses."""
    try:
        journal = Journal.open(directory, segment_bytes_max=3000)
    except FatalError as error:
        refusal = error
    else:
        with journal:
            return state_of(journal)
    assert refusal.exit_code == FatalError.EXIT_IO_ERROR
    assert "is damaged at byte" in str(refusal)
    return None


def position_of(state: State | None, states: list[State], at_least: int) -> int:
    """Which of the states it is; fails when it is none at or behind `at_least`."""
    for position in range(len(states) - 1, at_least - 1, -1):
        if {g: e for g, e in states[position].items() if e} == state:
            return position
    raise AssertionError(f"{state} is no prefix that holds operation {at_least}")


def acked_before(written: Written, length: int) -> int:
    """The last state whose sync lies within the first `length` bytes of the last segment."""
    sealed = 0 if not written.batches else -1
    for end, position in written.batches:
        if end <= length:
            sealed = position
    return max(sealed, 0)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10_000), where=st.floats(0, 1), close=st.booleans())
def test_cutting_the_last_file_anywhere_leaves_an_exact_prefix(
    seed: int, where: float, close: bool
) -> None:
    with written(seed, close=close) as journal:
        data = journal.last_segment.read_bytes()
        length = int(where * len(data))
        journal.last_segment.write_bytes(data[:length])
        state = reopened(journal.directory)
        if length < journal.header_bytes:
            assert state is None
        else:
            position_of(state, journal.states, acked_before(journal, length))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000), which=st.floats(0, 1), where=st.floats(0, 1), close=st.booleans()
)
def test_cutting_an_earlier_file_anywhere_is_refused(
    seed: int, which: float, where: float, close: bool
) -> None:
    """It was complete before the next one began: what is missing was synced."""
    with written(seed, close=close) as journal:
        *earlier, last = sorted(journal.directory.glob("*.segment"))
        assert last == journal.last_segment
        assume(earlier)
        path = earlier[int(which * (len(earlier) - 1))]
        data = path.read_bytes()
        path.write_bytes(data[: min(int(where * len(data)), len(data) - 1)])
        assert reopened(journal.directory) is None


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    where=st.floats(0, 1),
    mask=st.one_of(st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128]), st.integers(1, 255)),
    close=st.booleans(),
)
def test_a_flipped_byte_anywhere_is_refused_or_cut_from_the_last_batch(
    seed: int, where: float, mask: int, close: bool
) -> None:
    with written(seed, close=close) as journal:
        files = sorted(journal.directory.glob("*.segment"))
        sizes = [path.stat().st_size for path in files]
        offset = min(int(where * sum(sizes)), sum(sizes) - 1)
        for path, size in zip(files, sizes, strict=True):  # noqa: B007
            if offset < size:
                break
            offset -= size
        data = bytearray(path.read_bytes())
        data[offset] ^= mask
        path.write_bytes(data)
        state = reopened(journal.directory)
        if path != journal.last_segment or offset < journal.last_batch_offset:
            assert state is None
        elif close:
            # Only the empty batch of the clean end was hit: everything is there, or it is refused.
            assert state is None or position_of(state, journal.states, journal.acked) >= 0
        elif state is not None:
            position_of(state, journal.states, acked_before(journal, offset))


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 10_000), data=st.data())
def test_a_power_cut_during_a_sync_never_refuses_and_never_loses_what_was_synced(
    seed: int, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory(dir=FAST_DIRECTORY) as name:
        directory = Path(name)
        before = write(directory, seed, close=False)
        with Journal.open(directory) as journal:
            synced = state_of(journal)
            synced_bytes = journal._writer.written_bytes
            states = [synced]
            sizes = data.draw(st.lists(st.sampled_from([0, 30, 500, 3000]), min_size=1, max_size=6))
            for number, size in enumerate(sizes):
                last = journal.last_index(1)
                journal.append(1, last + 1, 1, random.Random(number).randbytes(size))
                states.append(state_of(journal))
            journal.sync()
            path = journal._writer.segment.path
            batch_end = journal._writer.written_bytes
            journal._release()
        assert before.states[-1] == {g: synced.get(g, []) for g in before.states[-1]}
        # What the disk has of the batch: lost sectors read as zeros, and the size is any.
        content = bytearray(path.read_bytes()[:batch_end])
        first_sector = synced_bytes // SECTOR_BYTES
        last_sector = (batch_end - 1) // SECTOR_BYTES
        lost = data.draw(st.sets(st.integers(first_sector, last_sector)))
        for sector in lost:
            begin = max(synced_bytes, sector * SECTOR_BYTES)
            end = min(batch_end, (sector + 1) * SECTOR_BYTES)
            content[begin:end] = bytes(end - begin)
        length = data.draw(st.integers(synced_bytes, batch_end))
        path.write_bytes(content[:length])
        state = reopened(directory)
        assert state is not None
        position_of(state, states, 0)


def two_batches(directory: Path) -> tuple[Path, int, int]:
    """A journal that died after its second sync; its file, where that batch begins and ends."""
    journal = Journal.open(directory)
    for index in range(1, 4):
        journal.append(1, index, 1, b"first-%d" % index)
    journal.sync()
    second = journal._writer.written_bytes
    for index in range(4, 7):
        journal.append(1, index, 1, b"second-%d" % index)
    journal.sync()
    end = journal._writer.written_bytes
    path = journal._writer.segment.path
    journal._release()
    return path, second, end


def test_torn_tail_is_cut_and_appending_goes_on(tmp_path: Path) -> None:
    path, _, end = two_batches(tmp_path)
    path.write_bytes(path.read_bytes()[: end - 1])
    for last in (5, 6, 7):
        with Journal.open(tmp_path) as journal:
            assert journal.last_index(1) == last
            journal.append(1, last + 1, 1, b"more")
    with Journal.open(tmp_path) as journal:
        assert [data for data, _, _ in journal.read(1, 5, 9, 1000)] == [b"second-5"] + [b"more"] * 3


def test_damage_in_the_middle_of_the_last_segment_is_fatal(tmp_path: Path) -> None:
    path, second, _ = two_batches(tmp_path)
    data = bytearray(path.read_bytes())
    data[second - 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(FatalError, match="damaged at byte") as error:
        Journal.open(tmp_path)
    assert str(path) in str(error.value)
    assert "rejoin" in str(error.value)
    assert path.read_bytes() == data  # a refusal changes nothing


def test_zeros_in_an_earlier_batch_are_damage_and_no_tear(tmp_path: Path) -> None:
    path, second, end = two_batches(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: second - 40] + bytes(40) + data[second:])
    assert reopened(tmp_path) is None
    # Even with one byte of the later batch left the earlier one was synced.
    path.write_bytes(data[: second - 40] + bytes(40) + data[second : second + 1])
    assert reopened(tmp_path) is None
    # The BATCH record itself gone: the later one proves it.
    begin = data.index(b"first-1") - 32 - BATCH_BYTES
    path.write_bytes(data[:begin] + bytes(BATCH_BYTES) + data[begin + BATCH_BYTES : end])
    assert reopened(tmp_path) is None


def large_batch(directory: Path, *, then: str) -> Path:
    """One batch of ten sectors, and what came `then`; the file, with a sector zeroed."""
    segment_bytes_max = 4000 if then == "next segment" else 1 << 20
    journal = Journal.open(directory, segment_bytes_max=segment_bytes_max)
    path = journal._writer.segment.path
    for index in range(1, 11):
        journal.append(1, index, 1, bytes([index]) * SECTOR_BYTES)
    journal.sync()
    if then == "clean end":
        journal.close()
    elif then == "another sync":
        journal.append(1, 11, 1, b"x")
        journal.sync()
    journal._release()
    if then == "another start":
        Journal.open(directory)._release()
    data = path.read_bytes()
    path.write_bytes(data[: 4 * SECTOR_BYTES] + bytes(SECTOR_BYTES) + data[5 * SECTOR_BYTES :])
    return path


def test_a_sector_that_is_missing_from_the_last_batch_is_a_tear(tmp_path: Path) -> None:
    large_batch(tmp_path, then="crash")
    state = reopened(tmp_path)
    assert state is not None
    assert [index for _, index, _ in state[1]] == [1, 2, 3]


@pytest.mark.parametrize("then", ["clean end", "another sync", "another start", "next segment"])
def test_a_sector_that_is_missing_from_a_synced_batch_is_damage(tmp_path: Path, then: str) -> None:
    large_batch(tmp_path, then=then)
    assert reopened(tmp_path) is None


def test_a_missing_sector_is_damage_whatever_it_held(
    tmp_path: Path,
) -> None:
    journal = Journal.open(tmp_path)
    for index in range(1, 40):
        journal.append(1, index, 1, bytes(43))  # no divisor of a sector: all alignments
        journal.sync()
    path = journal._writer.segment.path
    journal._release()
    data = path.read_bytes()
    # Wherever it lies, batches behind it prove that it had been synced.
    for sector in range(1, len(data) // SECTOR_BYTES - 1):
        begin, end = sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES
        path.write_bytes(data[:begin] + bytes(SECTOR_BYTES) + data[end:])
        assert reopened(tmp_path) is None


def test_a_flipped_bit_in_the_last_batch_is_damage_and_no_tear(tmp_path: Path) -> None:
    path, second, end = two_batches(tmp_path)
    data = bytearray(path.read_bytes())
    data[end - 1] ^= 1
    path.write_bytes(data)
    assert reopened(tmp_path) is None
    data[end - 1] ^= 1
    data[second + 1] ^= 1
    path.write_bytes(data)
    assert reopened(tmp_path) is None


def test_entries_that_look_like_records_do_not_mislead_recovery(tmp_path: Path) -> None:
    """A pusher may put bytes of a segment into an entry; without the place they never pass."""
    path, second, _ = two_batches(tmp_path)
    batch = path.read_bytes()[second : second + BATCH_BYTES]
    with Journal.open(tmp_path) as journal:
        journal.append(1, 7, 1, batch * 3)
        journal.sync()
        end = journal._writer.written_bytes
        journal._release()
    path.write_bytes(path.read_bytes()[: end - 1])
    with Journal.open(tmp_path) as journal:
        assert journal.last_index(1) == 6


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_missing_segment_is_fatal(tmp_path: Path, victim: int) -> None:
    journal = Journal.open(tmp_path, segment_bytes_max=500)
    for index in range(1, 20):
        journal.append(1, index, 1, bytes(100))
        journal.sync()
    journal.close()
    files = sorted(tmp_path.glob("*.segment"))
    assert len(files) > 3
    files[victim].unlink()
    with pytest.raises(FatalError, match="the file is missing"):
        Journal.open(tmp_path)


def test_segments_of_two_journals_do_not_mix(tmp_path: Path) -> None:
    for name in ("a", "b"):
        journal = Journal.open(tmp_path / name, segment_bytes_max=500)
        for index in range(1, 20):
            journal.append(1, index, 1, bytes(100 if name == "a" else 90))
            journal.sync()
        journal.close()
    shutil.copy(tmp_path / "b" / "0000000002.segment", tmp_path / "a")
    assert reopened(tmp_path / "a") is None
    shutil.copy(tmp_path / "b" / "0000000001.segment", tmp_path / "b" / "0000000002.segment")
    with pytest.raises(FatalError, match="says that it is segment 1"):
        Journal.open(tmp_path / "b")


def test_a_record_that_rots_while_the_journal_is_open_is_fatal(tmp_path: Path) -> None:
    with Journal.open(tmp_path, cache_bytes_max=0) as journal:
        journal.append(1, 1, 1, b"as it was")
        journal.sync()
        path = journal._writer.segment.path
        data = path.read_bytes()
        with path.open("r+b") as file:
            file.write(data.replace(b"as it was", b"as it isn"))
        with pytest.raises(FatalError, match="passed before does not now"):
            journal.read(1, 1, 2, 100)
        assert not journal.is_open


def test_a_half_written_new_segment_is_forgotten(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        journal.append(1, 1, 1, b"x")
    (tmp_path / "0000000002.segment.tmp").write_bytes(b"half")
    (tmp_path / "group-1.vote.tmp").write_bytes(b"another's")
    with Journal.open(tmp_path) as journal:
        assert journal.last_index(1) == 1
    assert not (tmp_path / "0000000002.segment.tmp").exists()
    assert (tmp_path / "group-1.vote.tmp").exists()


@pytest.mark.parametrize("torn_bytes", range(40, 700, 40))
def test_a_quiet_group_whose_move_was_torn_keeps_every_entry(
    tmp_path: Path, torn_bytes: int
) -> None:
    """Found by the simulator (seed 575): a disk got full while a quiet group was copied out of old
    segments. The copies that had survived made the log look as if it began in the new segment, and
    the segments with its other entries were removed at the next start."""
    journal = Journal.open(tmp_path, segment_bytes_max=500)
    for index in range(1, 9):
        journal.append(0, index, 1, b"quiet %d" % index)
    journal.sync()
    for index in range(1, 12):
        journal.append(1, index, 1, bytes(100))
        journal.sync()
    before = journal._writer.written_bytes
    last = journal._writer.segment.path
    kept = {path: path.read_bytes() for path in tmp_path.glob("*.segment")}
    journal.drop_prefix(1, 11)
    with_moved = last.read_bytes()
    journal.close()
    for path, data in kept.items():  # no segment was removed yet, and the copies reached the disk
        path.write_bytes(data)
    for path in set(tmp_path.glob("*.segment")) - set(kept):
        path.unlink()
    moved_bytes = len(with_moved) - before
    last.write_bytes(with_moved[: before + min(torn_bytes, moved_bytes)])
    for _ in range(2):  # what one start removes, the next one lacks
        with Journal.open(tmp_path, segment_bytes_max=500, cache_bytes_max=0) as journal:
            found = journal.read(0, 1, 9, 1 << 20)
            assert found == [(b"quiet %d" % index, index, 1) for index in range(1, 9)]
            assert journal.last_index(1) == 11

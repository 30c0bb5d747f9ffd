"""Tables of refs give what a look at every ref would give, however they came about."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorepo.storage.git import ref_table
from quorepo.storage.git.advertise import (
    RefsView,
    advertise_receive_pack,
    advertise_upload_pack_v0,
)
from quorepo.storage.git.fetch_request import LsRefsRequest
from quorepo.storage.git.pktline import FLUSH, encode
from quorepo.storage.git.ref_table import RefMap, RefRow, RefTable
from quorepo.storage.git.ref_table_file import RefsOrigin, read_ref_table, write_ref_table
from quorepo.storage.git.upload_pack import ls_refs
from quorepo.storage.objectformat import ObjectFormat

NAMES = st.lists(st.sampled_from([b"a", b"b", b"\xff", b"ab", b"/x"]), min_size=1, max_size=4).map(
    lambda parts: b"refs/" + b"".join(parts)
)
VALUES = st.tuples(st.binary(min_size=20, max_size=20), st.none() | st.just(b"p" * 20))
REFS = st.dictionaries(NAMES, VALUES, max_size=12)
CHANGES = st.dictionaries(NAMES, st.none() | VALUES, max_size=6)
PREFIXES = st.lists(
    st.sampled_from([b"", b"H", b"HEAD", b"HEADS", b"refs/", b"refs/a", b"refs/ab", b"refs/\xff",
                     b"\xff", b"refs/b/x", b"z"]),
    max_size=4,
)  # fmt: skip


def rows_of(refs: dict[bytes, tuple[bytes, bytes | None]]) -> list[RefRow]:
    return [(name, oid, peeled) for name, (oid, peeled) in sorted(refs.items())]


def lines_of(rows: list[RefRow], peel: bool, prefixes: list[bytes]) -> list[bytes]:
    """One by one, as git writes them."""
    return [
        encode(
            oid.hex().encode() + b" " + name
            + (b" peeled:" + peeled.hex().encode() if peel and peeled else b"") + b"\n"
        )
        for name, oid, peeled in rows
        if not prefixes or name.startswith(tuple(prefixes))
    ]  # fmt: skip


@given(refs=REFS, steps=st.lists(CHANGES, max_size=3), prefixes=PREFIXES, data=st.data())
def test_patched_tables_say_what_a_look_at_every_ref_says(
    refs: dict[bytes, tuple[bytes, bytes | None]],
    steps: list[dict[bytes, tuple[bytes, bytes | None] | None]],
    prefixes: list[bytes],
    data: st.DataObject,
) -> None:
    with mock.patch.object(ref_table, "_BLOCK_ROWS", data.draw(st.integers(1, 4), "block")):
        table = RefTable.of(rows_of(refs), ObjectFormat.SHA1)
        for changes in steps:
            table = table.patched(changes)
            refs = {k: v for k, v in (refs | changes).items() if v is not None}
        rows = rows_of(refs)
        assert list(table) == rows == table[:]
        assert len(table) == len(rows)
        assert [table[place] for place in range(len(rows))] == rows
        low, high = sorted(data.draw(st.tuples(st.integers(0, 12), st.integers(0, 12)), "slice"))
        assert table[low:high] == rows[low:high]
        after = data.draw(st.just(b"") | NAMES, "after")
        prefix = data.draw(st.sampled_from([b"", b"refs/a", b"refs/b", b"\xff"]), "prefix")
        found = [row for row in rows if row[0].startswith(prefix) and row[0] > after]
        assert table.page(prefix, after, 3) == found[:3]
        assert list(table.names(prefix)) == [r[0] for r in rows if r[0].startswith(prefix)]
        names = {*refs, data.draw(NAMES, "name")}
        known = RefMap(table)
        assert {name: known.get(name) for name in names} == {
            name: refs[name][0] if name in refs else None for name in names
        }
        assert dict(known) == {name: oid for name, oid, _ in rows}
        assert list(table.tips()) == list(dict.fromkeys(oid.hex() for _, oid, _ in rows))
        assert list(table.tags()) == [row for row in rows if row[2]]
        hidden = data.draw(st.lists(NAMES, max_size=3), "hidden")
        below = tuple(name + b"/" for name in hidden)
        left = [row for row in rows if row[0] not in hidden and not row[0].startswith(below)]
        assert list(table.without(hidden)) == left
        for peel in (False, True):
            request = LsRefsRequest(tuple(prefixes), peel=peel)
            answer = ls_refs(request, RefsView(b"refs/none", None, table, ObjectFormat.SHA1))
            assert answer == b"".join([*lines_of(rows, peel, prefixes), FLUSH])


@given(refs=REFS, data=st.data())
def test_advertisements_are_those_of_git(
    refs: dict[bytes, tuple[bytes, bytes | None]], data: st.DataObject
) -> None:
    rows = rows_of(refs)
    head = data.draw(st.sampled_from([None, b"refs/unborn", *refs]), "head")
    view = RefsView(head, None, rows, ObjectFormat.SHA1)
    zero = b"0" * 40 + b" capabilities^{}"
    expected = [b"%b %b" % (oid.hex().encode(), name) for name, oid, _ in rows]
    for answer, lines in (
        (advertise_receive_pack(view), expected),
        (advertise_upload_pack_v0(view), with_head(rows, head)),
    ):
        with_words, _, rest = answer.partition(b"\0")
        assert with_words[4:] == (lines or [zero])[0]
        assert rest.partition(b"\n")[2] == b"".join(encode(li + b"\n") for li in lines[1:]) + FLUSH


def with_head(rows: list[RefRow], head: bytes | None) -> list[bytes]:
    lines = [b"%b HEAD" % oid.hex().encode() for name, oid, _ in rows if name == head]
    for name, oid, peeled in rows:
        lines.append(b"%b %b" % (oid.hex().encode(), name))
        if peeled:
            lines.append(b"%b %b^{}" % (peeled.hex().encode(), name))
    return lines


def test_a_push_leaves_the_blocks_that_it_did_not_touch_alone() -> None:
    rows: list[RefRow] = [(b"refs/heads/b%05d" % n, b"%020d" % n, None) for n in range(5000)]
    table = RefTable.of(rows, ObjectFormat.SHA1)
    new = table.patched({b"refs/heads/b02500x": (b"n" * 20, None), b"refs/heads/b00001": None})
    assert len(set(table.blocks) - set(new.blocks)) == 2
    assert len(new) == len(table)
    assert new.digest != table.digest


def test_a_stored_table_is_read_back_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    rows: list[RefRow] = [(b"refs/heads/b%05d" % n, b"%020d" % n, None) for n in range(1000)]
    rows.append((b"refs/tags/v1", b"t" * 20, b"p" * 20))
    origin = RefsOrigin("r" * 32, 1, 7, 3)
    path = tmp_path / "refs-table"
    assert read_ref_table(path) is None
    write_ref_table(path, origin, RefTable.of(rows, ObjectFormat.SHA1))
    found = read_ref_table(path)
    assert found is not None
    assert found[0] == origin
    assert list(found[1]) == rows
    content = bytearray(path.read_bytes())
    for place in (0, 20, len(content) // 2, len(content) - 1):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert read_ref_table(path) is None
    path.write_bytes(b"")
    assert read_ref_table(path) is None


def test_a_table_that_cannot_be_stored_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_ref_table(
        tmp_path / "gone" / "refs-table",
        RefsOrigin("r" * 32, 1, 7, 3),
        RefTable.of([], ObjectFormat.SHA1),
    )
    assert "not stored" in caplog.text

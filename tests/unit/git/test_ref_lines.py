"""Stored ref lines give what `ls_refs` gives, for any refs and any prefixes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quorepo.storage.git.advertise import RefsView
from quorepo.storage.git.fetch_request import LsRefsRequest
from quorepo.storage.git.ref_lines import RefLines
from quorepo.storage.git.upload_pack import ls_refs
from quorepo.storage.objectformat import ObjectFormat

NAMES = st.lists(st.sampled_from([b"a", b"b", b"\xff", b"ab", b"/x"]), min_size=1, max_size=4)
REFS = st.dictionaries(
    NAMES.map(lambda parts: b"refs/" + b"".join(parts)),
    st.tuples(st.binary(min_size=20, max_size=20), st.none() | st.just(b"p" * 20)),
    max_size=12,
)
PREFIXES = st.lists(
    st.sampled_from([b"", b"H", b"HEAD", b"HEADS", b"refs/", b"refs/a", b"refs/ab", b"refs/\xff",
                     b"\xff", b"refs/b/x", b"z"]),
    max_size=4,
)  # fmt: skip


@given(refs=REFS, prefixes=PREFIXES, data=st.data())
def test_stored_lines_are_those_of_ls_refs(
    refs: dict[bytes, tuple[bytes, bytes | None]], prefixes: list[bytes], data: st.DataObject
) -> None:
    rows = [(name, oid, peeled) for name, (oid, peeled) in sorted(refs.items())]
    head = data.draw(st.sampled_from([None, b"refs/unborn", *refs]), "head")
    detached = b"d" * 20 if head is None and data.draw(st.booleans(), "detached") else None
    view = RefsView(head, detached, rows, ObjectFormat.SHA1)
    lines = RefLines(view)
    for _ in range(2):
        flags = [data.draw(st.booleans()) for _ in range(3)]
        request = LsRefsRequest(tuple(prefixes), *flags)
        assert lines.answer(request) == ls_refs(request, view)

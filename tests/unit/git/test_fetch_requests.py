"""Requests are read as git reads them, and what was not offered is refused in one line."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorepo.storage.errors import InvalidArgument, LimitExceeded, NotFound, QuorepoError
from quorepo.storage.git import upload_pack
from quorepo.storage.git.advertise import (
    RefsView,
    advertise_capabilities_v2,
    advertise_receive_pack,
    advertise_upload_pack_v0,
)
from quorepo.storage.git.fetch_request import (
    INFINITE_DEPTH,
    BundleUriRequest,
    FetchRequest,
    MultiAck,
    Negotiation,
    ObjectInfoRequest,
)
from quorepo.storage.git.filters import ObjectFilter, parse_filter
from quorepo.storage.git.pktline import DELIM, FLUSH, Marker, Packet, encode, read_all
from quorepo.storage.objectformat import ObjectFormat

A, B, C = (bytes([n]) * 20 for n in (0xA0, 0xB0, 0xC0))
AX, BX, CX = (oid.hex().encode() for oid in (A, B, C))


def lines(*texts: bytes) -> bytes:
    return b"".join(encode(text + b"\n") for text in texts)


def v2(command: bytes, *arguments: bytes, head: tuple[bytes, ...] = ()) -> bytes:
    return lines(b"command=" + command, *head) + DELIM + lines(*arguments) + FLUSH


def view(**changes: object) -> RefsView:
    refs = [(b"refs/heads/main", A, None), (b"refs/heads/z", B, None), (b"refs/tags/v1", C, A)]
    values: dict[str, object] = {
        "head": b"refs/heads/main",
        "detached_head": None,
        "refs": refs,
        "object_format": ObjectFormat.SHA1,
        **changes,
    }
    return RefsView(**values)  # type: ignore[arg-type]


def test_v0_request() -> None:
    features = (
        b" multi_ack_detailed no-done side-band-64k thin-pack ofs-delta include-tag agent=g/1"
    )
    body = (
        lines(b"want " + AX + features, b"want " + BX, b"want " + AX, b"shallow " + CX, b"deepen 3")
        + FLUSH
        + lines(b"have " + CX, b"have " + BX)
        + FLUSH
    )
    request = upload_pack.parse_v0_request(body)
    assert request == FetchRequest(
        version=0,
        wants=(A, B),
        haves=(C, B),
        client_shallow=(C,),
        depth=3,
        multi_ack=MultiAck.DETAILED,
        no_done=True,
        side_band=65520,
        thin_pack=True,
        ofs_delta=True,
        include_tag=True,
        agent="g/1",
    )
    assert FetchRequest.from_json(json.loads(json.dumps(request.to_json()))) == request


def test_v0_request_of_a_client_without_capabilities() -> None:
    request = upload_pack.parse_v0_request(lines(b"want " + AX) + FLUSH + lines(b"done"))
    assert request == FetchRequest(version=0, wants=(A,), done=True)
    assert upload_pack.sends_pack(request, Negotiation())
    assert upload_pack.fetch_preamble(request, Negotiation()) == b"0008NAK\n"
    assert upload_pack.pack_frames(request, b"PACK") == b"PACK"
    assert upload_pack.progress_frames(request, "x\n") == b""
    assert upload_pack.fetch_epilogue(request) == b""


def test_v0_request_for_shallow_lines_only() -> None:
    request = upload_pack.parse_v0_request(lines(b"want " + AX, b"deepen 1") + FLUSH)
    assert not upload_pack.sends_pack(request, Negotiation(ready=True))
    answer = upload_pack.fetch_preamble(request, Negotiation(shallow=(A,)))
    assert answer == encode(b"shallow " + AX) + FLUSH


@pytest.mark.parametrize(
    ("mode", "common", "ready", "done", "expected"),
    [
        (b"", (), False, False, [b"NAK\n"]),
        (b"", (B, C), False, False, [b"ACK %s\n" % BX]),
        (b"", (B, C), False, True, [b"ACK %s\n" % BX]),
        (b" multi_ack", (B,), False, False, [b"ACK %s continue\n" % BX, b"NAK\n"]),
        (
            b" multi_ack",
            (B,),
            True,
            False,
            [b"ACK %s continue\n" % CX, b"ACK %s continue\n" % BX, b"NAK\n"],
        ),
        (b" multi_ack_detailed", (), False, True, [b"NAK\n"]),
        (
            b" multi_ack_detailed",
            (B,),
            True,
            False,
            [b"ACK %s common\n" % BX, b"ACK %s ready\n" % BX, b"NAK\n"],
        ),
        (
            b" multi_ack_detailed no-done",
            (B,),
            True,
            False,
            [b"ACK %s common\n" % BX, b"ACK %s ready\n" % BX, b"NAK\n", b"ACK %s\n" % BX],
        ),
        (
            b" multi_ack_detailed",
            (B,),
            False,
            True,
            [b"ACK %s common\n" % BX, b"ACK %s\n" % BX],
        ),
    ],
)
def test_v0_acknowledgments(
    mode: bytes, common: tuple[bytes, ...], ready: bool, done: bool, expected: list[bytes]
) -> None:
    end = lines(b"done") if done else FLUSH
    body = lines(b"want " + AX + mode) + FLUSH + lines(b"have " + CX, b"have " + BX) + end
    request = upload_pack.parse_v0_request(body)
    negotiation = Negotiation(common, ready)
    assert list(read_all(upload_pack.fetch_preamble(request, negotiation))) == expected
    assert upload_pack.sends_pack(request, negotiation) == (done or b"no-done" in mode)


def test_v2_fetch_request() -> None:
    body = v2(
        b"fetch",
        b"thin-pack",
        b"no-progress",
        b"include-tag",
        b"ofs-delta",
        b"wait-for-done",
        b"shallow " + CX,
        b"deepen-since 1700000000",
        b"deepen-not v1",
        b"deepen-relative",
        b"filter blob:limit=1k",
        b"want " + AX,
        b"have " + BX,
        head=(b"agent=git/2", b"object-format=sha1", b"server-option=x"),
    )
    request = upload_pack.parse_v2_request(body)
    assert isinstance(request, FetchRequest)
    assert request.deepen_since == 1_700_000_000
    assert request.deepen_not == (b"v1",)
    assert request.filter == ObjectFilter(blob_bytes_limit=1024)
    assert (request.wants, request.haves, request.client_shallow) == ((A,), (B,), (C,))
    assert request.wait_for_done
    assert request.side_band == 65520
    assert FetchRequest.from_json(json.loads(json.dumps(request.to_json()))) == request


@pytest.mark.parametrize(
    ("arguments", "negotiation", "expected"),
    [
        ((b"want " + AX, b"done"), Negotiation(), [b"packfile\n"]),
        ((b"want " + AX,), Negotiation(), [b"packfile\n"]),
        (
            (b"want " + AX, b"have " + BX),
            Negotiation(),
            [b"acknowledgments\n", b"NAK\n", Marker.FLUSH],
        ),
        (
            (b"want " + AX, b"have " + BX),
            Negotiation((B,), ready=True),
            [b"acknowledgments\n", b"ACK %s\n" % BX, b"ready\n", Marker.DELIM, b"packfile\n"],
        ),
        (
            (b"want " + AX, b"have " + BX, b"wait-for-done"),
            Negotiation((B,), ready=True),
            [b"acknowledgments\n", b"ACK %s\n" % BX, Marker.FLUSH],
        ),
        ((b"want " + AX, b"have " + BX, b"done"), Negotiation((B,)), [b"packfile\n"]),
        (
            (b"have " + BX,),
            Negotiation((B,)),
            [b"acknowledgments\n", b"ACK %s\n" % BX, Marker.FLUSH],
        ),
        (
            (b"want " + AX, b"shallow " + CX, b"deepen 2147483647", b"done"),
            Negotiation(unshallow=(C,)),
            [b"shallow-info\n", b"unshallow %s\n" % CX, Marker.DELIM, b"packfile\n"],
        ),
        ((), Negotiation(), []),
    ],
)
def test_v2_sections(
    arguments: tuple[bytes, ...], negotiation: Negotiation, expected: list[Packet]
) -> None:
    request = upload_pack.parse_v2_request(v2(b"fetch", *arguments))
    assert isinstance(request, FetchRequest)
    assert list(read_all(upload_pack.fetch_preamble(request, negotiation))) == expected
    assert upload_pack.sends_pack(request, negotiation) == (expected[-1:] == [b"packfile\n"])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (v2(b"fetch", b"want-ref main"), "unknown ref main"),
        (v2(b"fetch", b"want-ref refs/heads/a..b"), "unknown ref refs/heads/a..b"),
        (v2(b"fetch", b"want-ref HEAD", b"want-ref HEAD"), "duplicate want-ref HEAD"),
        (v2(b"fetch", b"packfile-uris https"), "unexpected line"),
        (v2(b"fetch", b"want main"), "expected an object id"),
        (v2(b"fetch", b"want " + AX[:38] + b"  "), "expected an object id"),
        (v2(b"fetch", b"deepen 0"), "Invalid deepen"),
        (v2(b"fetch", b"deepen -1"), "Invalid deepen"),
        (v2(b"fetch", b"deepen 1", b"deepen-not x"), "cannot be used together"),
        (v2(b"fetch", b"filter sparse:oid=x"), "'sparse:oid' is not supported"),
        (v2(b"fetch", b"filter blob:nothing"), "invalid filter-spec"),
        (v2(b"fetch", b"filter tree:0", b"filter tree:1"), "cannot be combined"),
        (v2(b"ls-refs", b"sparkle"), "unexpected line: 'sparkle'"),
        (v2(b"sparkle"), "invalid command 'sparkle'"),
        (v2(b"object-info", b"type"), "object-info: unexpected line: 'type'"),
        (v2(b"object-info", b"size", b"oid main"), "expected an object id"),
        (v2(b"fetch", head=(b"command=fetch",)), "already requesting"),
        (v2(b"fetch", head=(b"sparkle=1",)), "unknown capability 'sparkle=1'"),
        (v2(b"fetch", head=(b"object-format=sha256",)), "mismatched object format"),
        (lines(b"agent=x") + FLUSH, "no command requested"),
        (DELIM + FLUSH, "no command requested"),
        (lines(b"command=fetch") + DELIM + DELIM, "expected flush"),
        (b"001x", "bad line length"),
    ],
)
def test_v2_refusals(body: bytes, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        upload_pack.parse_v2_request(body)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (lines(b"wish " + AX) + FLUSH, "expected to get object ID, not 'wish"),
        (lines(b"want " + AX) + FLUSH + lines(b"hello"), "expected SHA1 list, got 'hello'"),
        (lines(b"want " + AX, b"filter blob:none") + FLUSH, "filtering capability not negotiated"),
        (lines(b"want " + AX + b" object-format=sha256") + FLUSH, "mismatched object format"),
    ],
)
def test_v0_refusals(body: bytes, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        upload_pack.parse_v0_request(body)


def test_probe_asks_for_nothing() -> None:
    for request in (
        upload_pack.parse_v0_request(FLUSH),
        upload_pack.parse_v0_request(b""),
        upload_pack.parse_v2_request(FLUSH),
    ):
        assert isinstance(request, FetchRequest)
        assert not request.wants
        assert not upload_pack.sends_pack(request, Negotiation())
        assert upload_pack.fetch_preamble(request, Negotiation()) == b""


def test_lines_are_limited() -> None:
    body = v2(b"fetch", *[b"have " + AX] * 50)
    with pytest.raises(LimitExceeded) as caught:
        upload_pack.parse_v2_request(body, lines_max=40)
    assert caught.value.limit == "limits.negotiation_lines_max"


WORDS = st.sampled_from(
    b"want /have /done/shallow /deepen /filter /command=/fetch/ls-refs/combine:/tree:/blob:limit=/"
    b"+/%/9/\n/ /\0/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/want-ref /HEAD/sideband-all/oid /size"
    b"/object-info/server-option=/session-id=/agent=/object-format=/wait-for-done".split(b"/")
)
COMMANDS = (b"fetch", b"ls-refs", b"object-info")
PIECES = st.one_of(
    st.lists(st.one_of(WORDS, st.binary(max_size=4)), max_size=5).map(b"".join).map(encode),
    st.sampled_from([FLUSH, DELIM, b"0002", b"00"]),
)


HEADS = st.sampled_from([b"", *(lines(b"command=" + c) + DELIM for c in COMMANDS)])


@given(
    body=st.lists(PIECES, max_size=8).map(b"".join), head=HEADS, end=st.sampled_from([b"", FLUSH])
)
def test_fuzzed_requests_raise_only_our_errors(body: bytes, head: bytes, end: bytes) -> None:
    for parse, data in (
        (upload_pack.parse_v0_request, body),
        (upload_pack.parse_v2_request, head + body + end),
    ):
        try:
            request = parse(data)
        except QuorepoError:
            continue
        if isinstance(request, FetchRequest):
            sent = json.loads(json.dumps(request.to_json()))
            # What the answer's frame alone needs stays with the edge.
            left = dataclasses.replace(request, session_id="", sideband_all=False, want_refs=())
            assert FetchRequest.from_json(sent) == left
            upload_pack.fetch_preamble(request, Negotiation())
        elif isinstance(request, ObjectInfoRequest):
            upload_pack.object_info_answer(request, [None] * len(request.oids))
        elif isinstance(request, BundleUriRequest):
            upload_pack.bundle_uri_answer(None)
        else:
            upload_pack.ls_refs(request, view())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"blob:none", ObjectFilter(blob_bytes_limit=0)),
        (b"blob:limit=2M", ObjectFilter(blob_bytes_limit=2 << 20)),
        (b"tree:3", ObjectFilter(tree_depth=3)),
        (b"object:type=tag", ObjectFilter(only_type=4)),
        (b"combine:tree:3+blob:none+tree:2", ObjectFilter(0, 2)),
        (b"combine:object%3Atype=blob+object:type=tree", ObjectFilter(only_type=0)),
        (b"combine:tree:5+combine:tree:2%2Bcombine:blob:none", ObjectFilter(0, 2)),
    ],
)
def test_filters(text: bytes, expected: ObjectFilter) -> None:
    assert parse_filter(text) == expected


def test_ls_refs() -> None:
    def ask(*arguments: bytes, **changes: object) -> list[Packet]:
        request = upload_pack.parse_v2_request(v2(b"ls-refs", *arguments))
        assert isinstance(request, upload_pack.LsRefsRequest)
        return list(read_all(upload_pack.ls_refs(request, view(**changes))))

    assert ask() == [
        AX + b" HEAD\n",
        AX + b" refs/heads/main\n",
        BX + b" refs/heads/z\n",
        CX + b" refs/tags/v1\n",
        Marker.FLUSH,
    ]
    assert ask(b"symrefs", b"ref-prefix HEAD") == [
        AX + b" HEAD symref-target:refs/heads/main\n",
        Marker.FLUSH,
    ]
    assert ask(b"peel", b"ref-prefix refs/tags/", b"ref-prefix refs/heads/z") == [
        BX + b" refs/heads/z\n",
        CX + b" refs/tags/v1 peeled:" + AX + b"\n",
        Marker.FLUSH,
    ]
    unborn = {"head": b"refs/heads/trunk", "refs": []}
    assert ask(b"symrefs", b"unborn", **unborn) == [
        b"unborn HEAD symref-target:refs/heads/trunk\n",
        Marker.FLUSH,
    ]
    assert ask(b"symrefs", **unborn) == [Marker.FLUSH]
    detached = {"head": None, "detached_head": B}
    assert ask(b"symrefs", b"ref-prefix HEAD", **detached) == [BX + b" HEAD\n", Marker.FLUSH]


def test_advertisements() -> None:
    first, *others = read_all(advertise_upload_pack_v0(view()))
    assert isinstance(first, bytes)
    ref, capabilities = first.split(b"\0")
    assert ref == AX + b" HEAD"
    assert {b"symref=HEAD:refs/heads/main", b"object-format=sha1"} <= set(capabilities.split())
    assert others == [
        AX + b" refs/heads/main\n",
        BX + b" refs/heads/z\n",
        CX + b" refs/tags/v1\n",
        AX + b" refs/tags/v1^{}\n",
        Marker.FLUSH,
    ]
    assert advertise_upload_pack_v0(view(), 1).startswith(b"000eversion 1\n")
    push = list(read_all(advertise_receive_pack(view())))
    assert isinstance(push[0], bytes)
    assert push[0].startswith(AX + b" refs/heads/main\0report-status ")
    assert len(push) == 4
    capabilities_v2 = list(read_all(advertise_capabilities_v2(ObjectFormat.SHA256)))
    assert capabilities_v2[0] == b"version 2\n"
    assert b"object-format=sha256\n" in capabilities_v2


def test_empty_repository_advertises_capabilities_only() -> None:
    empty = view(refs=[])
    first, end = read_all(advertise_upload_pack_v0(empty))
    assert isinstance(first, bytes)
    assert first.startswith(b"0" * 40 + b" capabilities^{}\0")
    assert b"symref=" not in first
    assert end is Marker.FLUSH
    assert advertise_receive_pack(empty)[4:].startswith(b"0" * 40 + b" capabilities^{}\0")


def test_names_of_deepen_not_are_resolved_in_the_view() -> None:
    def ask(name: bytes) -> list[str]:
        request = FetchRequest(version=2, wants=(A,), deepen_not=(name,))
        resolved: list[str] = upload_pack.job_arguments(request, view())["deepen_not"]
        return resolved

    assert ask(b"v1") == ask(b"refs/tags/v1") == [C.hex()]
    assert ask(b"HEAD") == [A.hex()]
    with pytest.raises(NotFound, match="unknown deepen-not: gone"):
        ask(b"gone")


def test_infinite_depth_is_gits() -> None:
    body = v2(b"fetch", b"deepen 2147483647")
    request = upload_pack.parse_v2_request(body)
    assert isinstance(request, FetchRequest)
    assert request.depth == INFINITE_DEPTH
    with pytest.raises(InvalidArgument):
        upload_pack.parse_v2_request(v2(b"fetch", b"deepen 2147483648"))


def test_v2_wanted_refs_are_resolved_and_named_before_the_pack() -> None:
    body = v2(b"fetch", b"want-ref HEAD", b"want-ref refs/heads/z", b"want " + CX, b"done")
    request = upload_pack.parse_v2_request(body)
    assert isinstance(request, FetchRequest)
    assert request.want_refs == (b"HEAD", b"refs/heads/z")
    refs = {b"HEAD": A, b"refs/heads/z": B}
    resolved = upload_pack.resolve_wanted_refs(request, refs.get)
    assert resolved.wants == (C, A, B)
    answer = upload_pack.fetch_preamble(resolved, Negotiation())
    assert list(read_all(answer)) == [
        b"wanted-refs\n",
        AX + b" HEAD\n",
        BX + b" refs/heads/z\n",
        Marker.DELIM,
        b"packfile\n",
    ]
    with pytest.raises(NotFound, match="unknown ref refs/heads/z"):
        upload_pack.resolve_wanted_refs(request, {b"HEAD": A}.get)


def test_v2_sideband_all_frames_every_line_and_no_marker() -> None:
    body = v2(b"fetch", b"sideband-all", b"want " + AX, b"have " + BX)
    request = upload_pack.parse_v2_request(body)
    assert isinstance(request, FetchRequest)
    answer = upload_pack.fetch_preamble(request, Negotiation((B,), ready=True))
    assert list(read_all(answer)) == [
        b"\x01acknowledgments\n",
        b"\x01ACK " + BX + b"\n",
        b"\x01ready\n",
        Marker.DELIM,
        b"\x01packfile\n",
    ]
    assert upload_pack.request_error(request, "no") == encode(b"\x03no")
    plain = upload_pack.parse_v2_request(v2(b"fetch", b"want " + AX))
    assert isinstance(plain, FetchRequest)
    assert upload_pack.request_error(plain, "no") == encode(b"ERR no")


def test_v2_object_info_request_and_answer() -> None:
    body = v2(b"object-info", b"size", b"oid " + AX, b"oid " + BX)
    request = upload_pack.parse_v2_request(body)
    assert request == ObjectInfoRequest((A, B), size=True)
    answer = upload_pack.object_info_answer(request, [17, None])
    assert list(read_all(answer)) == [b"size", AX + b" 17", BX + b" ", Marker.FLUSH]
    assert upload_pack.object_info_answer(ObjectInfoRequest(), []) == FLUSH


def test_what_a_client_says_of_itself_is_kept_for_the_log() -> None:
    head = (b"agent=git/9", b"session-id=abc", b"server-option=a=b", b"server-option=")
    request = upload_pack.parse_v2_request(v2(b"fetch", b"want " + AX, head=head))
    assert isinstance(request, FetchRequest)
    assert (request.agent, request.session_id) == ("git/9", "abc")


def test_a_v2_client_that_names_no_object_format_means_sha1() -> None:
    """git's serve.c: otherwise an old client would be given ids that it can't read."""
    with pytest.raises(InvalidArgument, match="server sha256; client sha1"):
        upload_pack.parse_v2_request(v2(b"ls-refs"), ObjectFormat.SHA256)

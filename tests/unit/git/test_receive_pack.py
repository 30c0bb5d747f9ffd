"""Pushes of real git clients and of hand-made ones: commands in, report out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.git import WorkTree, git
from support.git_http import StoredRepository, serve

from quorepo.storage.errors import InvalidArgument, LimitExceeded, QuorepoError
from quorepo.storage.git.pktline import FLUSH, Marker, encode, read_all
from quorepo.storage.git.receive_pack import (
    Ng,
    Ok,
    PushCapabilities,
    PushReport,
    ReceivePackParser,
    RefCommand,
    Unknown,
    push_error,
    push_progress,
    report_status,
)
from quorepo.storage.objectformat import ObjectFormat

ZERO = b"0" * 40
OID = b"1" * 40
CAPABILITIES = b" report-status-v2 side-band-64k atomic push-options object-format=sha1 agent=x/1"


@pytest.fixture
def empty(tmp_path: Path) -> StoredRepository:
    git("init", "--quiet", "--bare", "--initial-branch=main", str(tmp_path / "source"))
    return StoredRepository(tmp_path / "source", tmp_path / "data")


@pytest.fixture
def url(empty: StoredRepository) -> Iterator[str]:
    with serve(empty) as url:
        yield url


@pytest.mark.parametrize("version", [0, 1, 2])
def test_real_pushes(empty: StoredRepository, url: str, version: int, tmp_path: Path) -> None:
    work = WorkTree(tmp_path / "work")
    push = ("-c", f"protocol.version={version}", "push")
    first = work.commit("first", {"a.txt": "a\n" * 1000})
    # Without a terminal git asks for quiet; --progress undoes that.
    done = work.git(*push, "--progress", url, "main")
    assert "remote: checked by a test" in done.stderr
    assert empty.pushed.commands == [RefCommand(b"refs/heads/main", None, bytes.fromhex(first))]
    capabilities = empty.pushed.capabilities
    assert capabilities.report_status_v2
    assert capabilities.side_band_64k
    assert capabilities.agent.startswith("git/")
    second = work.commit("second", {"a.txt": "a\n" * 1000 + "b\n"})
    work.git("tag", "--annotate", "--message=t", "v1")
    work.git(*push, "--atomic", "--push-option=ci.skip", "--push-option=x=y z", url, "main", "v1")
    assert empty.pushed.push_options == ["ci.skip", "x=y z"]
    assert empty.pushed.capabilities.atomic
    assert len(empty.pushed.commands) == 2
    work.git(*push, "--quiet", url, ":refs/tags/v1")
    assert not empty.pushed.expects_pack
    assert empty.pushed.capabilities.quiet
    assert git("ls-remote", url).stdout.split() == [second, "HEAD", second, "refs/heads/main"]


def test_large_push_is_probed_first(url: str, tmp_path: Path) -> None:
    work = WorkTree(tmp_path / "work")
    work.commit("first", {"a.txt": "a\n" * 5000})
    work.git("-c", "http.postBuffer=200", "push", url, "main")


def test_refused_and_unknown_refs_are_told_apart(url: str, tmp_path: Path) -> None:
    work = WorkTree(tmp_path / "work")
    work.commit("first")
    refused = work.git("push", "--porcelain", url, "main", "main:refs/heads/unknown", check=False)
    assert refused.returncode != 0
    assert "*\trefs/heads/main:refs/heads/main\t[new branch]" in refused.stdout
    assert "[remote failure] (remote failed to report status)" in refused.stdout


def test_stale_old_value_is_reported(empty: StoredRepository, url: str, tmp_path: Path) -> None:
    work = WorkTree(tmp_path / "work")
    work.commit("first")
    work.git("push", url, "main")
    # git reads the refs, then somebody else pushes: as if `update-ref` lost the race.
    (empty.source / "refs/heads/main.lock").touch()
    work.commit("second")
    refused = work.git("push", url, "main", check=False)
    assert "[rejected]        main -> main (stale info)" in refused.stderr


def test_signed_push_is_refused(url: str, tmp_path: Path) -> None:
    work = WorkTree(tmp_path / "work")
    work.commit("first")
    refused = work.git("push", "--signed", url, "main", check=False)
    assert "does not support --signed push" in refused.stderr
    with pytest.raises(InvalidArgument, match="not supported"):
        ReceivePackParser().feed(encode(b"push-cert\0report-status\n"))


def body(*lines: bytes, end: bytes = FLUSH) -> bytes:
    return b"".join(encode(line) for line in lines) + end


def command(old: bytes, new: bytes, name: bytes, capabilities: bytes = b"") -> bytes:
    return old + b" " + new + b" " + name + (b"\0" + capabilities if capabilities else b"")


@given(cuts=st.lists(st.integers(0, 500)))
def test_body_may_arrive_in_any_pieces(cuts: list[int]) -> None:
    stream = (
        body(
            b"shallow " + OID,
            command(ZERO, OID, b"refs/heads/a", CAPABILITIES),
            command(OID, ZERO, b"refs/heads/b"),
        )
        + body(b"option one", b"two")
        + b"PACK the rest"
    )
    parser = ReceivePackParser()
    borders = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pack = b"".join(parser.feed(stream[start:stop]) for start, stop in itertools.pairwise(borders))
    parser.close()
    raw = bytes.fromhex(OID.decode())
    assert pack == b"PACK the rest"
    assert parser.shallow == [raw]
    assert parser.commands == [
        RefCommand(b"refs/heads/a", None, raw),
        RefCommand(b"refs/heads/b", raw, None),
    ]
    assert parser.push_options == ["option one", "two"]


def test_flush_alone_is_a_probe() -> None:
    parser = ReceivePackParser()
    assert parser.feed(FLUSH) == b""
    assert parser.is_probe
    assert not parser.expects_pack


@pytest.mark.parametrize(
    "stream",
    [
        body(b"hello"),
        body(OID + b" " + OID),
        body(OID + b" " + OID + b" "),
        body(command(b"x" * 40, OID, b"refs/heads/a")),
        body(command(OID[:38], OID, b"refs/heads/a")),
        body(b"shallow 12"),
        body(command(ZERO, OID, b"refs/heads/a", b"object-format=sha256")),
        body(command(ZERO, OID, b"refs/heads/a"), end=b"0001"),
        b"what?",
    ],
)
def test_malformed_commands_are_refused(stream: bytes) -> None:
    with pytest.raises(InvalidArgument):
        ReceivePackParser().feed(stream)


def test_truncated_commands_are_refused() -> None:
    parser = ReceivePackParser()
    parser.feed(body(command(ZERO, OID, b"refs/heads/a"), end=b""))
    with pytest.raises(InvalidArgument, match="ends inside"):
        parser.close()


def test_limits_are_named() -> None:
    many = body(*(command(ZERO, OID, b"refs/heads/%d" % n) for n in range(4)))
    with pytest.raises(LimitExceeded) as caught:
        ReceivePackParser(refs_per_push_max=3).feed(many)
    assert caught.value.limit == "limits.refs_per_push_max"
    ReceivePackParser(ref_name_bytes_max=16).feed(body(command(ZERO, OID, b"refs/heads/long-")))
    with pytest.raises(LimitExceeded) as caught:
        ReceivePackParser(ref_name_bytes_max=16).feed(body(command(ZERO, OID, b"refs/heads/" * 9)))
    assert caught.value.limit == "limits.ref_name_bytes_max"
    options = body(*[b"x" * 60_000] * 2)
    with pytest.raises(LimitExceeded):
        ReceivePackParser().feed(
            body(command(ZERO, OID, b"refs/heads/a", b"push-options")) + options
        )


@given(stream=st.binary(max_size=300), mutate=st.integers(0, 200))
def test_fuzzed_commands_raise_only_our_errors(stream: bytes, mutate: int) -> None:
    good = body(command(ZERO, OID, b"refs/heads/a", CAPABILITIES)) + body(b"option")
    for data in (stream, good[:mutate] + stream + good[mutate:]):
        parser = ReceivePackParser()
        try:
            parser.feed(data)
            parser.close()
        except QuorepoError:
            pass


def test_report_leaves_out_what_is_unknown() -> None:
    report = PushReport(
        "ok",
        [
            (b"refs/heads/a", Ok()),
            (b"refs/heads/b", Ng("stale info: expected\n1, is 2")),
            (b"refs/heads/c", Unknown()),
        ],
    )
    bare = report_status(report, PushCapabilities(report_status=True))
    lines = [
        b"unpack ok\n",
        b"ok refs/heads/a\n",
        b"ng refs/heads/b stale info: expected 1, is 2\n",
    ]
    assert list(read_all(bare)) == [*lines, Marker.FLUSH]
    framed = report_status(report, PushCapabilities(report_status_v2=True, side_band_64k=True))
    assert list(read_all(framed)) == [b"\x01" + bare, Marker.FLUSH]
    assert report_status(report, PushCapabilities()) == b""
    assert report_status(report, PushCapabilities(side_band_64k=True)) == FLUSH


def test_progress_and_errors_fit_the_client() -> None:
    loud = PushCapabilities(side_band_64k=True)
    assert push_progress("x\n", loud) == b"0007\x02x\n"
    assert push_progress("x\n", PushCapabilities(side_band_64k=True, quiet=True)) == b""
    assert push_progress("x\n", PushCapabilities()) == b""
    assert push_error("no", loud) == b"0008\x03no\n0000"
    assert push_error("no", PushCapabilities()).startswith(b"000aERR no")


def test_sha256_commands() -> None:
    parser = ReceivePackParser(ObjectFormat.SHA256)
    capabilities = b"report-status object-format=sha256"
    parser.feed(body(command(b"0" * 64, b"2" * 64, b"refs/heads/a", capabilities)))
    assert parser.commands[0].new == b"\x22" * 32
    with pytest.raises(InvalidArgument, match="mismatched object format"):
        # A client that names no format means sha1.
        ReceivePackParser(ObjectFormat.SHA256).feed(
            body(command(b"0" * 64, b"2" * 64, b"refs/heads/a", b"report-status"))
        )

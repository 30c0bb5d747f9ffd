"""`bench.serving` fails when a server's answer is not what was asked for."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from bench.raw_fetch import WrongAnswer, objects_sent, pack_of
from bench.serving_bench import Bench, Goal, Results, objects_of
from support.git import ENVIRONMENT, WorkTree

from quorepo.storage.git.fetch_answer import pack_frames
from quorepo.storage.git.fetch_request import FetchRequest
from quorepo.storage.git.pktline import PACKET_BYTES_MAX, encode


@dataclass
class Canned:
    """A server that always gives the same answer."""

    name: str
    answer: bytes

    def post(self, body: bytes, keep: Path) -> int:
        return keep.write_bytes(self.answer)


class CannedBench(Bench):
    canned: list[Canned]

    def targets(self, name: str, plain: bool = True) -> list[Any]:
        return self.canned


@pytest.fixture
def bench(tmp_path: Path) -> CannedBench:
    nobody = cast(Any, None)
    return CannedBench(tmp_path, nobody, nobody, 1, Results())


def answer_with(work: WorkTree, oids: set[str]) -> bytes:
    """A v2 answer whose pack has these objects."""
    pack = subprocess.run(
        ["git", "pack-objects", "--stdout", "-q"], input="\n".join(sorted(oids)).encode(),
        cwd=work.path, env=ENVIRONMENT, capture_output=True, check=True,
    ).stdout  # fmt: skip
    request = FetchRequest(version=2, wants=(), side_band=PACKET_BYTES_MAX)
    return encode(b"packfile\n") + bytes(pack_frames(request, pack)) + b"0000"


@pytest.fixture
def everything(work: WorkTree) -> set[str]:
    for number in range(3):
        work.commit(f"change {number}", {f"{number}.txt": f"{number}\n"})
    return set(objects_of(work.path, "HEAD"))


@pytest.fixture
def work(tmp_path: Path) -> WorkTree:
    return WorkTree(tmp_path / "work")


def test_equal_answers_are_fine(bench: CannedBench, work: WorkTree, everything: set[str]) -> None:
    whole = answer_with(work, everything)
    bench.canned = [Canned("quorepo", whole), Canned("git", whole)]
    bench.check("x", b"", work.path, everything, everything)
    assert bench.results.wrong == []


def test_an_object_too_few_and_one_too_many_are_told(
    bench: CannedBench, work: WorkTree, everything: set[str]
) -> None:
    blob = next(line for line in sorted(everything) if line not in objects_of(
        work.path, "--filter=blob:none", "HEAD"))  # fmt: skip
    whole, part = answer_with(work, everything), answer_with(work, everything - {blob})
    bench.canned = [Canned("quorepo", part), Canned("git", whole)]
    bench.check("x", b"", work.path, everything, everything, strict=False)
    assert bench.results.wrong == ["x: quorepo leaves 1 objects out"]
    bench.results.wrong.clear()
    bench.canned = [Canned("quorepo", whole), Canned("git", part)]
    allowed = everything - {blob}
    bench.check("x", b"", work.path, allowed, allowed, strict=False)
    assert bench.results.wrong[0] == "x: quorepo sends 1 objects of no use"
    assert bench.results.wrong[1].startswith("x: more objects than git sends")


def test_a_pack_that_git_refuses_is_told(
    bench: CannedBench, work: WorkTree, everything: set[str], tmp_path: Path
) -> None:
    whole = answer_with(work, everything)
    (tmp_path / "answer").write_bytes(whole)
    pack = bytearray(pack_of(tmp_path / "answer"))
    pack[40] ^= 1
    with pytest.raises(WrongAnswer, match="index-pack"):
        objects_sent(bytes(pack), tmp_path / "check.git", work.path, strict=True)
    request = FetchRequest(version=2, wants=(), side_band=PACKET_BYTES_MAX)
    damaged = encode(b"packfile\n") + bytes(pack_frames(request, bytes(pack))) + b"0000"
    bench.canned = [Canned("quorepo", damaged), Canned("git", whole)]
    bench.check("x", b"", work.path, everything, everything)
    [told] = bench.results.wrong
    assert told.startswith("x: quorepo: git index-pack --strict")


def test_a_missed_goal_is_named() -> None:
    assert Goal(wall=0.5, cpu=0.2).missed((0.6, 0.1, 1.6)) == ["wall", "bytes"]
    assert Goal(bytes=None).missed((9, 9, 9)) == []

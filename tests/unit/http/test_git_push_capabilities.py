"""What a push may ask for beyond moving refs, and what becomes of pushes from shallow clones.

Where git would silently do without a capability, its packet trace shows that it was used.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from support.edge import EdgeUnderTest
from support.git import WorkTree, clone, git, refs_of
from support.raw_http import ZERO, blob_entry, blob_id, commands, pack, packets, push

BLOB = b"content\n"
TAG_REF = "refs/tags/blob"
CREATE = f"{ZERO} {blob_id(BLOB)} {TAG_REF}"


def trace_of(work: WorkTree, *arguments: str) -> str:
    return work.git(*arguments, environment={"GIT_TRACE_PACKET": "1"}).stderr


def commands_of(trace: str) -> str:
    """The line in which git names what it takes."""
    return next(line for line in trace.splitlines() if "git> " in line and "\\0" in line)


def test_git_takes_what_is_offered(server: EdgeUnderTest, work: WorkTree, path: str) -> None:
    work.commit("first")
    url = server.url(path)
    trace = trace_of(work, "push", "--quiet", "--atomic", "-o", "ci.skip", url, "main")
    taken = commands_of(trace).partition("\\0")[2].split()
    for capability in (
        "report-status-v2",
        "side-band-64k",
        "quiet",
        "atomic",
        "object-format=sha1",
        "push-options",
    ):
        assert capability in taken
    assert "git> ci.skip" in trace
    assert "git< unpack ok" in trace
    assert "git< ok refs/heads/main" in trace
    assert list(server.core.commands[-1].transaction.push_options) == ["ci.skip"]


def test_packs_of_git_have_deltas_by_offset(
    server: EdgeUnderTest, work: WorkTree, path: str, tmp_path: Path
) -> None:
    """`ofs-delta` is taken by the client's pack-objects, whose options a trace shows."""
    lines = [f"line {number}\n" for number in range(900)]
    for number in range(3):
        lines[number] = "changed\n"
        work.commit(f"change {number}", {"a.txt": "".join(lines)})
    done = work.git("push", server.url(path), "main", environment={"GIT_TRACE": "1"})
    assert "--delta-base-offset" in done.stderr
    clone(server.url(path), tmp_path / "clone")


def test_a_quiet_push_says_nothing(server: EdgeUnderTest, work: WorkTree, path: str) -> None:
    work.commit("first")
    assert work.git("push", "--quiet", server.url(path), "main").stderr == ""


def test_a_report_of_version_1_is_enough(server: EdgeUnderTest, path: str) -> None:
    for number, capability in enumerate(("report-status", "report-status-v2")):
        body = commands(CREATE, capabilities=capability) + pack(blob_entry(BLOB))
        answer = push(server, f"{path}-{number}", body)
        assert packets(answer.body) == [b"unpack ok\n", f"ok {TAG_REF}\n".encode(), None]


def test_a_signed_push_is_refused_with_what_to_do(
    server: EdgeUnderTest, work: WorkTree, path: str
) -> None:
    """git does not even send a certificate; one that comes all the same is named."""
    work.commit("first")
    refused = work.git("push", "--signed", server.url(path), "main", check=False)
    assert "the receiving end does not support --signed push" in refused.stderr
    body = b"0020push-cert\0 report-status side" + b"0000"
    answer = push(server, path, body)
    assert b"signed pushes (push certificates) are not supported" in answer.body
    assert b"--no-signed" in answer.body
    # "if-asked" goes on without one.
    work.git("push", "--signed=if-asked", server.url(path), "main")


def shallow_clone(server: EdgeUnderTest, path: str, target: Path) -> WorkTree:
    git("clone", "--quiet", "--depth=1", server.url(path), str(target))
    made = object.__new__(WorkTree)
    made.path = target
    return made


def test_a_shallow_push_without_its_history_is_refused_in_gits_words(
    server: EdgeUnderTest, work: WorkTree, path: str, tmp_path: Path
) -> None:
    for number in range(3):
        work.commit(f"change {number}")
    work.git("push", "--quiet", server.url(path), "main")
    shallow = shallow_clone(server, path, tmp_path / "shallow")
    shallow.commit("from a shallow clone")
    elsewhere = server.url(path + "-elsewhere")
    refused = shallow.git("push", elsewhere, "main", check=False)
    assert refused.returncode != 0
    assert "[remote rejected] main -> main (shallow update not allowed)" in refused.stderr
    assert "unpack" not in refused.stderr
    assert git("ls-remote", elsewhere, check=False).returncode != 0


def test_a_shallow_push_names_where_it_ends_and_is_taken_when_connected(
    server: EdgeUnderTest, work: WorkTree, path: str, tmp_path: Path
) -> None:
    for number in range(3):
        work.commit(f"change {number}")
    work.git("push", "--quiet", server.url(path), "main")
    shallow = shallow_clone(server, path, tmp_path / "shallow")
    oid = shallow.commit("from a shallow clone")
    trace = trace_of(shallow, "push", "origin", "main")
    assert f"git> shallow {work.head()}" in trace
    assert refs_of(server.url(path))["refs/heads/main"] == oid
    assert git("rev-list", "--count", "HEAD", cwd=clone(server.url(path), tmp_path / "full"))


def test_copying_and_agreeing_are_told_when_they_take_long(
    server: EdgeUnderTest, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicate = server.core.replicate_pack

    async def slow(*arguments: Any) -> Any:
        await asyncio.sleep(1.2)
        return await replicate(*arguments)

    monkeypatch.setattr(server.core, "replicate_pack", slow)
    content = random.Random(1).randbytes(200_000)  # too large for a log entry
    create = f"{ZERO} {blob_id(content)} {TAG_REF}"
    answer = push(server, path, commands(create) + pack(blob_entry(content)))
    assert answer.report() == ["unpack ok", f"ok {TAG_REF}"]
    assert b"Copying the pack to a majority of nodes (0.2 MiB)\n" in answer.bands()[2]


def test_a_sha256_client_is_told_how_to_get_its_repository(
    server: EdgeUnderTest, path: str, tmp_path: Path
) -> None:
    """A push creates SHA-1 repositories: the advertisement names the format before the client."""
    oid = "ab" * 32
    body = commands(
        f"{'0' * 64} {oid} refs/heads/main",
        capabilities="report-status side-band-64k object-format=sha256",
    )
    answer = push(server, path, body)
    said = b"mismatched object format: server sha1; client sha256"
    assert said in answer.body
    assert f"quorepo repo create {path} --object-format sha256".encode() in answer.body
    tree = tmp_path / "sha256"
    git("init", "--quiet", "--object-format=sha256", str(tree))
    git("commit", "--quiet", "--allow-empty", "--message=first", cwd=tree)
    # git itself trips over the zero id of an empty SHA-1 repository before it compares formats.
    refused = git("push", server.url(path), "HEAD:refs/heads/main", cwd=tree, check=False)
    assert refused.returncode != 0
    push(server, path, commands(CREATE) + pack(blob_entry(BLOB)))
    refused = git("push", server.url(path), "HEAD:refs/heads/main", cwd=tree, check=False)
    assert "does not support this repository's hash algorithm" in refused.stderr

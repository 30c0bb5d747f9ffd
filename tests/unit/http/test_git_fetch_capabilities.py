"""What git asks for in a fetch, seen in its packet trace, and what comes of it.

git does without a capability silently; so each test looks at the request first.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.edge import EdgeUnderTest
from support.git import WorkTree, clone, git

_PACKET = re.compile(r" packet: +\S+([<>]) (?:\\1)?(.*)")  # \1: a band


class Trace:
    """What one git command and its helpers said and heard, line by line."""

    def __init__(self, version: int, *arguments: str, cwd: Path) -> None:
        done = git(
            "-c", f"protocol.version={version}", *arguments,
            cwd=cwd, environment={"GIT_TRACE_PACKET": "1"},
        )  # fmt: skip
        self.text = done.stderr
        packets = _PACKET.findall(done.stderr)
        self.sent = [line for direction, line in packets if direction == ">"]
        self.heard = [line for direction, line in packets if direction == "<"]
        self.all_sent = " ".join(self.sent)


@pytest.fixture
def cloned(server: EdgeUnderTest, work: WorkTree, path: str, tmp_path: Path) -> Path:
    """A clone of 8 commits, to which others and a tag were pushed since."""
    text = [f"line {number}\n" for number in range(400)]
    for number in range(8):
        text[number * 7] = f"changed in {number}\n"
        work.commit(f"change {number}", {"text.txt": "".join(text)})
    work.git("push", "--quiet", server.url(path), "main")
    target = clone(server.url(path), tmp_path / "clone")
    for number in range(8, 11):
        text[number * 7] = f"changed in {number}\n"
        work.commit(f"change {number}", {"text.txt": "".join(text)})
    work.git("tag", "--annotate", "--message=note", "v1", "HEAD~1")
    work.git("push", "--quiet", server.url(path), "main", "v1")
    return target


@pytest.mark.parametrize("version", [0, 2])
def test_a_tag_comes_with_the_commits_that_it_names(cloned: Path, version: int) -> None:
    trace = Trace(version, "fetch", "origin", "main:refs/heads/there", cwd=cloned)
    for capability in ("include-tag", "thin-pack", "ofs-delta"):
        assert capability in trace.all_sent
    tag = git("rev-parse", "v1", cwd=cloned).stdout.strip()
    wants = [line for line in trace.sent if line.startswith("want")]
    assert not [line for line in wants if tag in line or "v1" in line], "it came without a question"
    git("fsck", "--full", "--strict", cwd=cloned)


@pytest.mark.parametrize("version", [0, 2])
def test_a_quiet_fetch_is_told_nothing(cloned: Path, version: int) -> None:
    trace = Trace(version, "fetch", "--quiet", "origin", cwd=cloned)
    assert "no-progress" in trace.all_sent
    assert "remote: " not in trace.text


def add_commits_of_its_own(repository: Path) -> None:
    """So that the 16 haves of git's first question are these and some, not all, of the others."""
    for number in range(12):
        git("commit", "--allow-empty", "--quiet", f"--message=own {number}", cwd=repository)


def test_a_client_of_version_0_is_ready_without_a_last_question(cloned: Path) -> None:
    add_commits_of_its_own(cloned)
    trace = Trace(0, "fetch", "origin", cwd=cloned)
    assert "multi_ack_detailed" in trace.all_sent
    assert "no-done" in trace.all_sent
    assert any(line.startswith("ACK ") and line.endswith(" ready") for line in trace.heard)
    assert "done" not in trace.sent


def test_a_client_of_version_2_is_told_that_it_is_ready(cloned: Path) -> None:
    add_commits_of_its_own(cloned)
    trace = Trace(2, "fetch", "origin", cwd=cloned)
    assert "acknowledgments" in trace.heard
    assert "ready" in trace.heard
    assert "done" not in trace.sent


@pytest.mark.parametrize("version", [0, 2])
def test_deepening_counts_from_where_the_client_ends(
    server: EdgeUnderTest, cloned: Path, path: str, tmp_path: Path, version: int
) -> None:
    target = tmp_path / f"shallow-{version}"
    git("clone", "--quiet", "--depth=2", server.url(path), str(target))
    trace = Trace(version, "fetch", "--deepen=3", "origin", cwd=target)
    assert "deepen 3" in trace.sent
    assert "deepen-relative" in trace.all_sent
    assert git("rev-list", "--count", "origin/main", cwd=target).stdout == "5\n"
    trace = Trace(version, "fetch", "--unshallow", "origin", cwd=target)
    assert "deepen 2147483647" in trace.sent
    assert git("rev-list", "--count", "origin/main", cwd=target).stdout == "11\n"
    git("fsck", "--full", "--strict", cwd=target)


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("--shallow-since=@978307200", "deepen-since 978307200"),
        ("--shallow-exclude=v1", "deepen-not v1"),
        ("--filter=blob:none", "filter blob:none"),
        ("--filter=object:type=commit", "filter object:type=commit"),
    ],
)
def test_what_a_clone_asks_for_is_asked_on_the_wire(
    server: EdgeUnderTest, work: WorkTree, cloned: Path, path: str, tmp_path: Path,
    option: str, line: str,
) -> None:  # fmt: skip
    work.commit("after the tag")
    work.git("push", "--quiet", server.url(path), "main")
    target = tmp_path / "asked"
    url = server.url(path)
    trace = Trace(2, "clone", "--no-checkout", option, url, str(target), cwd=tmp_path)
    assert line in trace.sent
    assert git("rev-parse", "HEAD", cwd=target).stdout.strip() == work.head()

"""What a blame looks at: the versions of the file, and little for commits that leave it alone."""

from __future__ import annotations

from pathlib import Path

from support.packing import PackStore, git_bytes

from quorepo.storage.history.blame import blame
from quorepo.storage.history.source import Caches, History
from quorepo.storage.objectformat import ObjectFormat

OTHERS = 300


def test_commits_that_leave_the_file_alone_are_passed_by(tmp_path: Path) -> None:
    git_dir = tmp_path / "git"
    git_bytes("init", "--bare", "--quiet", "--initial-branch=main", str(git_dir), cwd=tmp_path)
    lines = []
    for number in range(1, OTHERS + 1):
        name = b"d/file" if number % 100 == 1 else b"d/other"
        text = b"".join(b"%d\n" % line for line in range(1, number + 1, 100))
        lines.append(
            b"commit refs/heads/main\nmark :%d\ncommitter C <c@example.org> %d +0000\n"
            b"data 0\nM 644 inline %s\ndata %d\n%s" % (number, number, name, len(text), text)
        )
    git_bytes("fast-import", "--quiet", cwd=git_dir, stdin=b"\n".join(lines) + b"\n")
    store = PackStore(tmp_path / "data", ObjectFormat.SHA1)
    store.add(git_bytes("pack-objects", "--all", "--stdout", "-q", cwd=git_dir))
    tip = bytes.fromhex(git_bytes("rev-parse", "main", cwd=git_dir).decode())
    caches = Caches()
    looked_at = 0

    def tick() -> None:
        nonlocal looked_at
        looked_at += 1

    found = blame(History(store.packs, caches), tip, b"d/file", 1, 3, 1 << 20, tick)
    assert [lines.line_count for lines in found] == [1, 1, 1]
    assert looked_at == 3
    # The trees are read by now: what is left is a step for four commits, and five for a version.
    again = History(store.packs, caches, budget=OTHERS // 4 + 3 * 6)
    assert blame(again, tip, b"d/file", 1, 3, 1 << 20, lambda: again.spend(5)) == found
    assert len(caches.differences) == 2

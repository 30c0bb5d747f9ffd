"""Repositories of fixed seeds that look like real ones: small edits of text files, merges, tags.

Not random bytes: an edit changes a few lines of a file that stays, so that packs consist of deltas.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

# Objects, roughly, by number of commits: a commit changes one or two files one to three
# directories deep.
COMMITS = {"1k": 160, "5k": 800, "40k": 6_300, "180k": 28_500}
# For pushes of whole repositories: commits, and how much larger than the others' their edits are.
# About 20 MB and 40,000 objects, 170 MB and 180,000 objects, as etcd has them.
BULKY = {"2MB": (800, 8), "20MB": (6_300, 6), "170MB": (28_500, 10)}

_LINES_MAX = 600  # of a file

_WORDS = (
    *("self", "return", "result", "value", "index", "error", "node", "commit", "tree", "blob"),
    *("pack", "offset", "size", "count", "if", "else", "for", "while", "import", "from", "class"),
    *("def", "raise", "except", "try", "finally", "with", "as", "lambda", "yield", "None", "True"),
)


def generate(path: Path, commits: int, seed: int, bulk: int = 1) -> None:
    """A bare repository: `main`, ten branches, a tag per 100 commits; repacked into one pack.

    `bulk` times as many lines are changed by an edit, and more of them is said for the first time.
    """
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(path)], check=True)
    process = subprocess.Popen(
        ["git", "-C", str(path), "fast-import", "--quiet"], stdin=subprocess.PIPE
    )
    assert process.stdin is not None
    for piece in _stream(commits, random.Random(seed), bulk):
        process.stdin.write(piece)
    process.stdin.close()
    assert process.wait() == 0
    window = 8 if bulk > 1 else 20  # large edits: it takes long, and finds no better deltas
    repack = ("repack", "-adfq", "--depth=50", f"--window={window}")
    for command in (repack, ("pack-refs", "--all")):
        subprocess.run(["git", "-C", str(path), *command], check=True)


def generated(kind: str, folder: Path) -> Path:
    """The repository of that name in `COMMITS` or `BULKY`, made in `folder` unless it is there."""
    path = folder / f"generated-{kind}.git"
    if not path.exists():
        commits, bulk = BULKY[kind] if kind in BULKY else (COMMITS[kind], 1)
        new = path.with_suffix(".new")
        generate(new, commits, seed=7, bulk=bulk)
        new.rename(path)
    return path


def _stream(commits: int, chance: random.Random, bulk: int) -> Iterator[bytes]:
    files: dict[str, list[str]] = {}
    for number in range(1, commits + 1):
        author = f"Committer {number % 17} <c{number % 17}@example.org>"
        date = 1_500_000_000 + number * 600
        message = f"Change {number}: " + " ".join(chance.choices(_WORDS, k=12)) + "\n"
        yield f"commit refs/heads/main\nmark :{number}\n".encode()
        yield f"author {author} {date} +0000\ncommitter {author} {date} +0000\n".encode()
        yield f"data {len(message)}\n{message}".encode()
        if number > 1:
            yield f"from :{number - 1}\n".encode()
        if number > 20 and number % 10 == 0:
            yield f"merge :{number - chance.randrange(3, 15)}\n".encode()
        for name in _changed(files, chance, bulk):
            text = "".join(files[name]).encode()
            yield f"M 644 inline {name}\ndata {len(text)}\n".encode() + text + b"\n"
        if number % 100 == 0:
            note = f"release {number}\n"
            yield f"tag v{number}\nfrom :{number}\ntagger {author} {date} +0000\n".encode()
            yield f"data {len(note)}\n{note}".encode()
    for branch in range(10):
        oldest = max(1, commits - 37 * (branch + 1))
        yield f"reset refs/heads/topic-{branch}\nfrom :{oldest}\n\n".encode()


def _changed(files: dict[str, list[str]], chance: random.Random, bulk: int) -> list[str]:
    """Edits one or two files in place, or makes a new one now and then."""
    if len(files) < 40 or chance.random() < 0.04:
        depth = chance.randrange(1, 4)
        folders = "/".join(f"part{chance.randrange(6)}" for _ in range(depth))
        name = f"{folders}/file{len(files)}.py"
        files[name] = [_line(chance, bulk) for _ in range(chance.randrange(20, 300))]
        return [name]
    names = chance.sample(sorted(files), chance.randrange(1, 3))
    for name in names:
        lines = files[name]
        for _ in range(chance.randrange(1, 4)):
            place = chance.randrange(len(lines))
            lines[place : place + chance.randrange(3) * bulk] = [
                _line(chance, bulk) for _ in range(chance.randrange(1, 5) * bulk)
            ]
            del lines[_LINES_MAX:]
    return names


def _line(chance: random.Random, bulk: int) -> str:
    words = chance.choices(_WORDS, k=7)
    if bulk > 1:
        words[3] = f"name_{chance.getrandbits(96):024x}"
    return "    " * chance.randrange(4) + " ".join(words) + "\n"

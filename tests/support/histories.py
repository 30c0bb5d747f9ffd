"""Random repositories made by C git through fast-import, for property tests."""

from __future__ import annotations

import random
from pathlib import Path

from support.packing import git_bytes


def random_repository(path: Path, seed: int, commits: int, object_format: str = "sha1") -> Path:
    """A bare repository with branches, merges, tags, symlinks, folders and slowly changing files.

    The same seed makes the same objects. All branches are named b<number>; `b0` is the first.
    """
    git_bytes(
        "init",
        "--bare",
        "--quiet",
        "--initial-branch=b0",
        f"--object-format={object_format}",
        str(path),
        cwd=path.parent,
    )
    git_bytes("fast-import", "--quiet", cwd=path, stdin=fast_import(seed, commits))
    return path


def fast_import(seed: int, commits: int) -> bytes:
    """The input of `git fast-import`."""
    chance = random.Random(seed)
    texts: dict[str, list[str]] = {}
    lines: list[bytes] = []
    tips: list[int] = []
    heads: dict[int, int] = {}
    for number in range(1, commits + 1):
        branch = chance.randrange(3) if tips else 0
        message = f"commit {number}\n" * chance.randrange(1, 4)
        lines += [
            f"commit refs/heads/b{branch}".encode(),
            f"mark :{number}".encode(),
            f"committer C <c@example.com> {1_700_000_000 + number} +0100".encode(),
            _data(message.encode()),
        ]
        if tips:
            lines.append(f"from :{heads.get(branch, chance.choice(tips))}".encode())
            if chance.random() < 0.3:
                lines.append(f"merge :{chance.choice(tips)}".encode())
        for _ in range(chance.randrange(4)):
            lines += _change(chance, texts)
        tips.append(number)
        heads[branch] = number
        if chance.random() < 0.2:
            lines += [
                f"tag t{number}".encode(),
                f"from :{number}".encode(),
                b"tagger T <t@example.com> 1700000000 +0000",
                _data(b"a tag\n"),
            ]
    return b"\n".join(lines) + b"\n"


def _change(chance: random.Random, texts: dict[str, list[str]]) -> list[bytes]:
    name = f"{chance.choice(['', 'd/', 'd/e/', 'f-g/'])}file{chance.randrange(6)}"
    kind = chance.random()
    if kind < 0.1:
        return [f"D {name}".encode()]
    if kind < 0.2:
        return [f"M 120000 inline link{chance.randrange(3)}".encode(), _data(b"target")]
    if kind < 0.3:
        return [
            f"M 100755 inline {name}.bin".encode(),
            _data(chance.randbytes(chance.randrange(3000))),
        ]
    text = texts.setdefault(name, [f"line {number}" for number in range(chance.randrange(200))])
    text.insert(chance.randrange(len(text) + 1), f"new {chance.random()}")
    return [f"M 100644 inline {name}".encode(), _data("\n".join(text).encode())]


def _data(content: bytes) -> bytes:
    return b"data %d\n%s" % (len(content), content)

"""Random histories with moves, equal dates and changes of type, stored as quorepo stores them."""

from __future__ import annotations

import random
from pathlib import Path

from quorepo.storage.history.source import History
from quorepo.storage.objectformat import ObjectFormat
from support.packing import PackStore, git_bytes

__all__ = ["StoredHistory", "moving_history"]

_WORDS = [b"one", b"two", b"three", b"four", b"if x:", b"", b"    return", b"}", b"{"]


class StoredHistory:
    """A repository of C git, and the same objects in a store of ours."""

    def __init__(self, path: Path, seed: int, commits: int, object_format: str = "sha1") -> None:
        path.mkdir(parents=True)
        kind = ObjectFormat.from_name(object_format)
        self.git_dir = path / "git"
        git_bytes(
            *("init", "--bare", "--quiet", "--initial-branch=b0"),
            f"--object-format={object_format}",
            str(self.git_dir),
            cwd=path,
        )
        self.git("fast-import", "--quiet", "--force", stdin=moving_history(seed, commits, kind))
        self.store = PackStore(path / "data", kind)
        pack = self.git("pack-objects", "--all", "--stdout", "-q")
        self.store.add(pack)
        self.commits = self.git("rev-list", "--all", "--date-order").decode().split()

    @property
    def history(self) -> History:
        """With caches of its own."""
        return History(self.store.packs)

    def git(self, *arguments: str, stdin: bytes = b"") -> bytes:
        return git_bytes(*arguments, cwd=self.git_dir, stdin=stdin)

    def git_or_nothing(self, *arguments: str) -> bytes:
        """Like `git`, for what fails when it finds nothing."""
        return git_bytes(*arguments, cwd=self.git_dir, check=False)

    def lines(self, *arguments: str) -> list[str]:
        return self.git(*arguments).decode("utf-8", "surrogateescape").splitlines()

    def oid(self, revision: str) -> bytes:
        return bytes.fromhex(self.git("rev-parse", "--verify", revision).decode().strip())

    def tree(self, revision: str) -> bytes:
        return self.oid(f"{revision}^{{tree}}")


def moving_history(seed: int, commits: int, object_format: ObjectFormat) -> bytes:
    """The input of `git fast-import`. Every text ends with a line end."""
    chance = random.Random(seed)
    files: dict[int, dict[str, list[bytes]]] = {0: {}}
    heads: dict[int, int] = {}
    lines: list[bytes] = []
    date = 1_700_000_000
    for number in range(1, commits + 1):
        date += chance.choice([0, 0, 1, 5])
        branch = chance.randrange(3) if heads else 0
        author = chance.choice([b"Ann <ann@example.com>", b"Bob <bob@example.com>"])
        lines += [
            b"commit refs/heads/b%d" % branch,
            b"mark :%d" % number,
            b"author %s %d +0100" % (author, date - chance.randrange(100)),
            b"committer C <c@example.com> %d +0000" % date,
            _data(chance.choice([b"fix", b"add", b"Fix more"]) + b" %d\n" % number),
        ]
        start = heads.get(branch, chance.choice(list(heads.values())) if heads else 0)
        if start:
            lines.append(b"from :%d" % start)
            if chance.random() < 0.25:
                lines.append(b"merge :%d" % chance.randrange(1, number))
        now = {name: list(text) for name, text in files[start].items()}
        for _ in range(chance.randrange(5)):
            lines += _change(chance, now, object_format)
        files[number] = now
        heads[branch] = number
    return b"\n".join(lines) + b"\n"


def _change(
    chance: random.Random, files: dict[str, list[bytes]], object_format: ObjectFormat
) -> list[bytes]:
    kind = chance.random()
    existing = sorted(files)
    if kind < 0.15 and existing:
        old = chance.choice(existing)
        new = f"{chance.choice(['', 'd/', 'd/e/'])}moved{chance.randrange(9)}"
        if new in files or old == new:
            return []
        text = files[new] = files.pop(old)
        if chance.random() < 0.5:
            _edit(chance, text)
        return [f"D {old}".encode(), *_written(new, text)]
    if kind < 0.25 and existing:
        old = chance.choice(existing)
        del files[old]
        return [f"D {old}".encode()]
    if kind < 0.3:
        name = f"link{chance.randrange(2)}"
        if chance.random() < 0.5:
            return [f"M 120000 inline {name}".encode(), _data(b"target%d" % chance.randrange(3))]
        return [f"M 100644 inline {name}".encode(), _data(b"a file\n")]
    if kind < 0.35:
        name = f"b in{chance.randrange(3)}.bin"
        return [f'M 100755 inline "{name}"'.encode(), _data(chance.randbytes(500) + b"\0")]
    if kind < 0.37:
        return [b"M 160000 %s sub" % chance.randbytes(object_format.hash_bytes).hex().encode()]
    name = f"{chance.choice(['', 'd/', 'd/e/', 'd-x/'])}file{chance.randrange(5)}"
    text = files.setdefault(name, [_line(chance) for _ in range(chance.randrange(1, 80))])
    _edit(chance, text)
    return _written(name, text)


def _edit(chance: random.Random, text: list[bytes]) -> None:
    for _ in range(chance.randrange(1, 4)):
        place = chance.randrange(len(text) + 1)
        if chance.random() < 0.4 and text:
            del text[place : place + chance.randrange(4)]
        else:
            text[place:place] = [_line(chance) for _ in range(chance.randrange(1, 4))]


def _line(chance: random.Random) -> bytes:
    word = chance.choice(_WORDS)
    return word + b" %d" % chance.randrange(50) if chance.random() < 0.6 else word


def _written(name: str, text: list[bytes]) -> list[bytes]:
    mode = 100755 if name.endswith("4") else 100644
    return [f"M {mode} inline {name}".encode(), _data(b"".join(line + b"\n" for line in text))]


def _data(content: bytes) -> bytes:
    return b"data %d\n%s" % (len(content), content)

"""Repositories made by C git, with shapes that matter to serving."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.git import WorkTree, git
from support.git_http import StoredRepository


def build_history(path: Path) -> Path:
    """A bare repository in three packs: merges, tags (one of a tag), a large file, a submodule
    link, a branch that is hidden, and a commit that nothing reaches any more.
    """
    work = WorkTree(path / "work")
    clock = 1_700_000_000
    big = "".join(f"line {number} of a file that changes slowly\n" for number in range(2000))

    def commit(message: str, files: dict[str, str | bytes]) -> str:
        nonlocal clock
        clock += 3600
        for name, content in files.items():
            target = work.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content if isinstance(content, bytes) else content.encode())
        work.git("add", "--all")
        dates = {"GIT_AUTHOR_DATE": f"{clock} +0000", "GIT_COMMITTER_DATE": f"{clock} +0000"}
        work.git("commit", "--quiet", f"--message={message}", environment=dates)
        return work.head()

    commit("first", {"README": "hello\n", "docs/a/b/c.txt": "deep\n", "big.txt": big})
    for number in range(8):
        changed = big.replace(f"line {number * 100} ", f"LINE {number * 100} ")
        big = changed
        commit(
            f"change {number}",
            {"big.txt": big, f"src/m{number % 3}/f{number}.py": f"x = {number}\n" * 50},
        )
    work.git("tag", "--annotate", "--message=one", "v1.0")
    work.git("checkout", "--quiet", "-b", "topic", "HEAD~4")
    commit("on topic", {"topic.txt": "topic\n"})
    commit("more on topic", {"topic.txt": "topic\nmore\n", "docs/t.txt": "t\n"})
    work.git("checkout", "--quiet", "main")
    bare = path / "source.git"
    git("clone", "--quiet", "--bare", str(work.path), str(bare))
    git("repack", "-adq", "--depth=20", "--window=20", cwd=bare)

    clock += 3600
    dates = {"GIT_AUTHOR_DATE": f"{clock} +0000", "GIT_COMMITTER_DATE": f"{clock} +0000"}
    work.git("merge", "--quiet", "--no-ff", "--message=merge", "topic", environment=dates)
    link = f"160000,{work.head()},sub"
    work.git("update-index", "--add", "--cacheinfo", link)
    commit("submodule", {"after-merge.txt": "merged\n", "sub/.keep": ""})
    work.git("tag", "--annotate", "--message=two", "v2.0")
    work.git("tag", "--annotate", "--message=of a tag", "v2.0-signed", "v2.0")
    work.git("tag", "light")
    push = ("push", "--quiet", str(bare))
    # `receive.unpackLimit=1` keeps each push as a pack, its thin part completed.
    git("config", "receive.unpackLimit", "1", cwd=bare)
    work.git(*push, "main", "topic", "--tags")
    work.git("checkout", "--quiet", "-b", "secret", "main")
    commit("secret", {"secret.txt": "do not show\n"})
    work.git(*push, "secret:refs/hidden/secret")
    commit("dropped", {"dropped.txt": "gone\n"})
    work.git(*push, "secret:refs/heads/dropped")
    work.git(*push, ":refs/heads/dropped")
    work.git("checkout", "--quiet", "main")
    commit("last", {"big.txt": big.replace("line 1500 ", "LINE 1500 "), "new.txt": "new\n"})
    work.git(*push, "main")
    return bare


@pytest.fixture(scope="session")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do not change it."""
    return build_history(tmp_path_factory.mktemp("history"))


@pytest.fixture
def stored(history: Path, tmp_path: Path) -> StoredRepository:
    return StoredRepository(history, tmp_path / "data", hidden=(b"refs/hidden/",))

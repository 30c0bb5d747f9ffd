"""libgit2 by way of pygit2: many editors, and the libraries of a dozen languages."""

from __future__ import annotations

from pathlib import Path

import pygit2
import pytest
from support.edge import TOKEN, EdgeUnderTest
from support.git import WorkTree, git, refs_of


class Callbacks(pygit2.RemoteCallbacks):
    """Gives the credential when asked, and keeps what the server said of each ref."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: dict[str, str] = {}
        self.progress = ""
        self._asked = 0

    def credentials(self, *_: object) -> pygit2.UserPass:
        self._asked += 1
        if self._asked > 1:
            raise PermissionError("the server does not take the token")
        return pygit2.UserPass("admin", TOKEN)

    def push_update_reference(self, refname: str, message: str | None) -> None:
        if message is not None:
            self.refused[refname] = message

    def sideband_progress(self, string: str) -> None:
        self.progress += string


@pytest.fixture
def url(server: EdgeUnderTest, path: str) -> str:
    return f"http://{server.address}/{path}"


def oid(directory: Path, name: str = "HEAD") -> str:
    return git("rev-parse", name, cwd=directory).stdout.strip()


def test_it_clones_fetches_and_pushes(
    server: EdgeUnderTest, work: WorkTree, path: str, url: str, tmp_path: Path
) -> None:
    target = tmp_path / "clone"
    repository = pygit2.clone_repository(url, str(target), callbacks=Callbacks())
    assert oid(target) == work.head()
    newer = work.commit("newer", {"text.txt": "other\n" * 900, "new/file": "new\n"})
    work.git("push", "--quiet", server.url(path), "main")
    origin = repository.remotes["origin"]
    origin.fetch(callbacks=Callbacks())
    assert oid(target, "origin/main") == newer
    signature = pygit2.Signature("Lib", "lib@example.com", 1_700_000_000, 0)
    blob = repository.create_blob(b"from libgit2\n")
    builder = repository.TreeBuilder(repository[newer].peel(pygit2.Tree))
    builder.insert("lib.txt", blob, pygit2.enums.FileMode.BLOB)
    made = repository.create_commit(
        "refs/heads/mine", signature, signature, "mine", builder.write(), [pygit2.Oid(hex=newer)]
    )
    callbacks = Callbacks()
    origin.push(["refs/heads/mine:refs/heads/main"], callbacks=callbacks)
    assert callbacks.refused == {}
    assert refs_of(server.url(path))["refs/heads/main"] == str(made)
    git("fsck", "--full", "--strict", cwd=target)


def test_a_shallow_clone_has_what_was_asked_for(work: WorkTree, url: str, tmp_path: Path) -> None:
    target = tmp_path / "clone"
    pygit2.clone_repository(url, str(target), callbacks=Callbacks(), depth=1)
    assert git("rev-list", "--count", "HEAD", cwd=target).stdout.strip() == "1"
    git("fsck", "--full", "--strict", cwd=target)


def test_a_refused_ref_is_told_with_its_reason(work: WorkTree, url: str, tmp_path: Path) -> None:
    repository = pygit2.clone_repository(url, str(tmp_path / "clone"), callbacks=Callbacks())
    callbacks = Callbacks()
    repository.remotes["origin"].push([":refs/heads/main"], callbacks=callbacks)
    assert callbacks.refused == {"refs/heads/main": "deletion of the current branch prohibited"}

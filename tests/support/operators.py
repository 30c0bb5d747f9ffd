"""Clients that write through the API without a pause, and know how often each write may be found.

Every write says its own words (in a message, or a ref's name), so that the history tells whether
it was done once, twice or never.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

from quorepo import Client
from quorepo.types import FileAction, Signature
from support.waiting import eventually

__all__ = ["ADA", "KINDS", "Operator", "prepare"]

ADA = Signature("Ada", "ada@example.org")
Work = Callable[[Client, str, str], None]


def prepare(client: Client, path: str) -> None:
    """A repository with a file on main, and a branch to merge into."""
    client.repositories.create(path, default_branch="main")
    client.operations.commit_files(
        path, "main", [FileAction("create", "file", b"content\n")], message="base", author=ADA
    )
    client.operations.create_branch(path, "merged", "main")


def _start(client: Client, path: str, branch: str, words: str) -> str:
    """The commit that a new branch, made of main, begins with."""
    made = client.operations.commit_files(
        path, branch, [FileAction("create", f"{branch}.txt", b"content\n")],
        message=words, author=ADA, start="main", expected_oid="",
    )  # fmt: skip
    return made.commit_oid


def _files(client: Client, path: str, words: str) -> None:
    """All operators on one branch: they come between each other."""
    client.operations.commit_files(
        path, "main", [FileAction("create", f"f/{words}", words.encode())],
        message=words, author=ADA,
    )  # fmt: skip


def _merge(client: Client, path: str, words: str) -> None:
    _start(client, path, f"topic-{words}", f"topic {words}")
    made = client.operations.merge(
        path, "merged", f"topic-{words}", mode="merge-commit", message=words, author=ADA
    )
    assert made.outcome == "commit"


def _pick(client: Client, path: str, words: str) -> None:
    source = _start(client, path, f"source-{words}", f"source {words}")
    client.operations.cherry_pick(path, "merged", source, committer=ADA, message=words)


def _revert(client: Client, path: str, words: str) -> None:
    source = _start(client, path, f"wrong-{words}", f"wrong {words}")
    client.operations.revert(path, f"wrong-{words}", source, author=ADA, message=words)


def _rebase(client: Client, path: str, words: str) -> None:
    _start(client, path, f"moving-{words}", words)
    client.operations.rebase(path, f"moving-{words}", "merged", upstream="main", committer=ADA)


def _names(client: Client, path: str, words: str) -> None:
    """None of these calls may meet its own first attempt."""
    operations = client.operations
    operations.create_branch(path, f"short-{words}", "main")
    operations.create_tag(path, f"tag-{words}", "main", message=words, tagger=ADA)
    operations.delete_branch(path, f"short-{words}")


KINDS: dict[str, Work] = {
    "files": _files,
    "merge": _merge,
    "pick": _pick,
    "revert": _revert,
    "rebase": _rebase,
    "names": _names,
}


class Operator(threading.Thread):
    """One client that does the kinds of work one after the other, until it is stopped."""

    def __init__(self, make_client: Callable[[], Client], path: str, name: str) -> None:
        super().__init__(daemon=True)
        self._make_client, self._path, self._name = make_client, path, name
        self._stop_requested = threading.Event()
        self.done: dict[str, str] = {}  # words to kind
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with self._make_client() as client:
                for number in itertools.count():
                    for kind, work in KINDS.items():
                        if self._stop_requested.is_set():
                            return
                        words = f"{kind}-{self._name}-{number}"
                        work(client, self._path, words)
                        self.done[words] = kind
        except BaseException as error:
            self.failure = error

    def wait_for_all_kinds(self) -> None:
        """Returns once each kind was done once more."""
        goal = len(self.done) + len(KINDS)
        eventually(
            lambda: self.failure is not None or len(self.done) >= goal,
            timeout_s=120,
            what=f"{self._name} goes on",
        )
        if self.failure is not None:
            raise self.failure

    def finish(self) -> None:
        self._stop_requested.set()
        self.join(120)
        if self.failure is not None:
            raise self.failure

"""What a client has seen of each repository, so that its reads show at least that.

A path at which this client made, deleted or moved a repository is read linearizably from then on:
revisions of two repositories that were at one path after another can't be compared.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from quorepo.v1 import common_pb2

__all__ = ["Session"]

_PATHS_MAX = 10_000  # the least recently used is read linearizably again

Consistency = common_pb2.Consistency


class Session:
    """Revisions by path. Threads may share it."""

    def __init__(self, consistency: str) -> None:
        """`consistency`: "session", "linearizable" or "local", for reads that do not say."""
        self._default = consistency
        self._lock = threading.Lock()
        self._seen: OrderedDict[str, tuple[int, int] | None] = OrderedDict()

    def wanted(self, path: str, asked: str | None) -> Consistency:
        """The consistency of a read of a repository."""
        level = asked or self._default
        if level == "session":
            with self._lock:
                seen = self._seen.get(path)
            if seen is None:
                return _linearizable()
            return Consistency(at_least=common_pb2.Revision(incarnation=seen[0], counter=seen[1]))
        return self.wanted_of_all(level)

    def wanted_of_all(self, asked: str | None) -> Consistency:
        """The consistency of a read that is not of one repository."""
        if (asked or self._default) == "local":
            return Consistency(local=Consistency.Local())
        return _linearizable()

    def saw(self, path: str, revision: common_pb2.Revision) -> None:
        """An answer about the repository at `path` showed this revision, or led to it."""
        shown = (revision.incarnation, revision.counter)
        with self._lock:
            if path in self._seen:
                known = self._seen[path]
                if known is not None and known < shown:
                    self._seen[path] = shown
            else:
                self._seen[path] = shown
            self._seen.move_to_end(path)
            if len(self._seen) > _PATHS_MAX:
                self._seen.popitem(last=False)

    def moved(self, *paths: str) -> None:
        """Another repository, or none, may be at these paths now."""
        with self._lock:
            for path in paths:
                self._seen[path] = None
                self._seen.move_to_end(path)


def _linearizable() -> Consistency:
    return Consistency(linearizable=Consistency.Linearizable())

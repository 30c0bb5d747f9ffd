"""Which repository a path names now, told on the event loop without waiting.

Most reads ask for a repository that did not change since the last one. Whether that is so is a
question of microseconds (`cluster/state/glance.py`), where a transaction in a thread costs a fifth
of a whole call. Must not know what is read of a repository.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from quorepo.cluster.state.glance import Glance, Moment
from quorepo.cluster.state.rows import PathRow, RepositoryRow

__all__ = ["Found", "Glances"]

_REMEMBERED_MAX = 10_000  # paths; about 500 bytes each


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """What a path names."""

    path: PathRow
    row: RepositoryRow


class _Known(NamedTuple):
    directory: Moment
    group: Moment
    found: Found


class Glances:
    """The groups of a node, for the thread of the event loop."""

    def __init__(self, glances: Mapping[int, Glance], directory: int) -> None:
        """`glances` by group id; `directory` is the group that has the paths."""
        self._glances = glances
        self._directory = directory
        self._remembered: dict[str, _Known] = {}

    def close(self) -> None:
        """Closes the state files."""
        for glance in self._glances.values():
            glance.close()

    def look(self, path: str) -> Found | None:
        """What a normalized path names in this node's state as it is now. None: nothing, or it
        cannot be told without waiting; ask a reader.
        """
        now = self._glances[self._directory].moment()
        if now is None:
            return None
        directory = self._glances[self._directory]
        known = self._remembered.get(path)
        is_same = known is not None and known.directory == now
        row = known.found.path if known is not None and is_same else directory.path(path)
        glance = None if row is None else self._glances.get(row.group)
        # Before the row is read: what is read after this moment can only be newer.
        group_now = None if glance is None else glance.moment()
        if row is None or glance is None or group_now is None:
            self._remembered.pop(path, None)
            return None
        if known is not None and known.group == group_now and known.found.path == row:
            found = known.found
        else:
            repository = glance.repository(row.repository_id)
            if repository is None or repository.deleted:
                self._remembered.pop(path, None)
                return None
            found = Found(row, repository)
        if len(self._remembered) >= _REMEMBERED_MAX:
            self._remembered.clear()
        self._remembered[path] = _Known(now, group_now, found)
        return found

"""Reads what the members are to be, and what they are, from this node's own committed states.

In threads, so that SQLite never holds up the event loop; through readers, which follow a state to
its next generation when a snapshot is installed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from quorepo.cluster.state.commands import DIRECTORY_GROUP
from quorepo.cluster.state.members import Intentions, intentions
from quorepo.cluster.state.reader import StateReader
from quorepo.internal.v1 import log_pb2
from quorepo.storage.layout import GroupLayout

__all__ = ["CommittedMembers"]


class CommittedMembers:
    """Lives in the core's event loop; `close` ends it."""

    def __init__(self, layouts: Mapping[int, GroupLayout], founding: log_pb2.Configuration) -> None:
        self._readers = {group: StateReader(layout) for group, layout in layouts.items()}
        self._founding = founding

    async def intentions(self) -> Intentions:
        """What the directory wants, as far as this node knows. Raises Unavailable, FatalError."""
        reader = self._readers[DIRECTORY_GROUP]
        found: Intentions = await self._in_thread(reader.read, intentions)
        return found

    async def configurations(self) -> dict[int, log_pb2.Configuration]:
        """The newest committed configuration of each group that this node's states hold."""
        return {
            group: (await self._in_thread(reader.configuration)) or self._founding
            for group, reader in self._readers.items()
        }

    def close(self) -> None:
        """Closes the readers."""
        for reader in self._readers.values():
            reader.close()

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)

"""Opens what a node has on its disk, in the order in which a crash is repaired.

Owns the order: leftovers go, states open, packs that came in entries are whole again, packs are
counted, an interrupted switch to a snapshot ends. Must not know what is done with it afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from quorepo.cluster.identity import NodeIdentity
from quorepo.cluster.inline_packs import restore_packs
from quorepo.cluster.metrics import ClusterMetrics
from quorepo.cluster.peer.held import HeldPacks
from quorepo.cluster.peer.pack_files import sweep_temporary
from quorepo.cluster.raft.interface import GroupStart
from quorepo.cluster.raft.journal import Journal
from quorepo.cluster.snapshot.source import remove_copies
from quorepo.cluster.snapshot.staging import finish_interrupted
from quorepo.cluster.state.store import StateStore
from quorepo.cluster.sweep import sweep_uploads
from quorepo.internal.v1 import log_pb2
from quorepo.storage.disk_space import DiskReserve
from quorepo.storage.layout import GroupLayout, fsync_dir

__all__ = ["NodeDisk", "founding_configuration", "open_disk"]

_UPLOAD_AGE_S_MIN = 3600.0


@dataclasses.dataclass(frozen=True, slots=True)
class NodeDisk:
    """What a node has on its disk, opened. `stores` changes when a snapshot is installed."""

    layouts: dict[int, GroupLayout]
    stores: dict[int, StateStore]
    held: HeldPacks
    journal: Journal
    votes_dir: Path
    space: DiskReserve

    def starts(self, founding: log_pb2.Configuration) -> dict[int, GroupStart]:
        """Where the engine begins in each group."""
        return {group: _start(store, founding) for group, store in self.stores.items()}

    def close_store(self, group: int) -> None:
        """Closes the store that the group has by then."""
        self.stores[group].close()


async def open_disk(
    data_dir: Path,
    groups: Sequence[int],
    reserve_bytes: int,
    metrics: ClusterMetrics,
    stack: contextlib.AsyncExitStack,
) -> NodeDisk:
    """Opens everything; `stack` closes it. Raises FatalError."""
    layouts = {group: GroupLayout(data_dir, group) for group in groups}
    for group, layout in layouts.items():
        layout.create()
        sweep_temporary(layout)
        sweep_uploads(layout, group, _UPLOAD_AGE_S_MIN)
        remove_copies(layout)
    stores = {group: StateStore.open(layout) for group, layout in layouts.items()}
    loop = asyncio.get_running_loop()
    journal = Journal.open(data_dir / "journal", on_sync=metrics.journal_synced)
    coming = {
        group: await loop.run_in_executor(None, restore_packs, layout, stores[group], journal)
        for group, layout in layouts.items()
    }
    held = await loop.run_in_executor(None, HeldPacks.scan, layouts)
    for group, digests in coming.items():
        for digest in digests:
            held.expect(group, digest)
    votes_dir = data_dir / "votes"
    votes_dir.mkdir(mode=0o700, exist_ok=True)
    fsync_dir(data_dir)
    space = DiskReserve(data_dir, reserve_bytes)
    disk = NodeDisk(layouts, stores, held, journal, votes_dir, space)
    for group in groups:
        stack.callback(disk.close_store, group)
    stack.callback(journal.close)
    for group, layout in layouts.items():
        finish_interrupted(layout, stores[group], journal)
    return disk


def founding_configuration(identity: NodeIdentity) -> log_pb2.Configuration:
    """How the cluster of this node began."""
    assert identity.founding is not None, "a node of a cluster knows how it began"
    return identity.founding


def _start(store: StateStore, founding: log_pb2.Configuration) -> GroupStart:
    applied = store.configuration
    return GroupStart(
        founding=founding,
        applied_index=store.applied_index,
        applied_term=store.applied_term,
        applied_configuration=None
        if applied is None
        else log_pb2.Configuration.FromString(applied),
    )

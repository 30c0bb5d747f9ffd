"""Small packs whose bytes travel in the log entry that adds them.

One sync of the journal makes such a pack and its entry durable, on each replica at the same time;
apply writes the files without waiting for the disk. Until they are synced the journal is what a
power cut leaves of them, so it is never cut before (`StateStore.sync_files`), and a start looks at
what it names. Owns that look, and the other way round: a pack taken out of a command, where a
member of an older level would not know it there. Must not know how entries are ordered.
"""

from __future__ import annotations

from collections.abc import Mapping

from quorepo.cluster.gate import packs_inside
from quorepo.cluster.raft.entries import is_command, payload_of
from quorepo.cluster.raft.journal import Journal
from quorepo.cluster.state.store import StateStore
from quorepo.internal.v1 import log_pb2
from quorepo.storage.layout import GroupLayout, store_pack, sync_packs

__all__ = ["restore_packs", "without_bytes"]

_READ_BYTES = 1024 * 1024
_ENTRY_BYTES_MIN = 1024  # a smaller one holds no index: that begins with 256 numbers


def restore_packs(layout: GroupLayout, store: StateStore, journal: Journal) -> set[bytes]:
    """Makes whole and durable what the state names and the journal brought; at a start, before
    anybody looks at the folders. Blocks.

    Returns the digests that come with entries which the state does not have yet.

    Raises OSError, FatalError.
    """
    group = store.group
    holders = store.pack_digests()
    coming: set[bytes] = set()
    known: list[tuple[str, bytes]] = []
    index = max(1, journal.first_index(group))  # 0: nothing was ever written
    while records := journal.read(group, index, journal.last_index(group) + 1, _READ_BYTES):
        for data, at, _term in records:
            if len(data) < _ENTRY_BYTES_MIN or not is_command(data):
                continue
            command = log_pb2.Command.FromString(payload_of(data))
            for pack in packs_inside(command):
                repository_id = command.transaction.repository_id
                if at > store.applied_index:
                    coming.add(pack.digest)
                elif repository_id in holders.get(pack.digest, ()):
                    known += _restore(layout, repository_id, pack)
        index = records[-1][1] + 1
    if known:
        sync_packs(layout, known)
    return coming


def _restore(
    layout: GroupLayout, repository_id: str, pack: log_pb2.PackAddition
) -> list[tuple[str, bytes]]:
    """The pack, whole in its folder; nothing when the folder was retired, which is done durably."""
    paths = layout.pack_paths(repository_id, pack.digest)
    if not paths[0].parent.is_dir():
        return []
    for path, data in zip(paths, (pack.pack, pack.index), strict=True):
        if not path.exists() or path.read_bytes() != data:
            store_pack(layout, repository_id, pack.digest, pack.pack, pack.index)
            break
    return [(repository_id, pack.digest)]


def without_bytes(command: log_pb2.Command) -> tuple[log_pb2.Command, Mapping[bytes, bytes]]:
    """The command as a member of any level takes it, and what its packs were, by digest: the
    bytes of the pack and of the index behind them."""
    plain = log_pb2.Command()
    plain.CopyFrom(command)
    taken = {}
    for pack in packs_inside(plain):
        taken[pack.digest] = pack.pack + pack.index
        pack.encoding = log_pb2.PACK_ENCODING_FILE
        pack.ClearField("pack")
        pack.ClearField("index")
    return plain, taken

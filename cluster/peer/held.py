"""Which packs this node holds durably, in memory: what the gate in front of the journal asks.

A pack counts once both its files are fsynced under their digest, in quarantine or in any repository
of the group (apply links it from there when the same bytes were pushed to two repositories), or
once apply has written them from an entry that the journal keeps until they are fsynced. Must not
touch the disk after the scan: it is asked on the Raft thread.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from quorepo.storage.layout import GroupLayout, fsync_dir, held_packs

__all__ = ["HeldPacks"]


class HeldPacks:
    """A set of digests per group. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._digests: dict[int, set[bytes]] = {}
        self._coming: dict[int, set[bytes]] = {}

    def has(self, group: int, digest: bytes) -> bool:
        """Whether this node durably holds the pack anywhere in `group`."""
        return digest in self._digests.get(group, ())

    def add(self, group: int, digest: bytes) -> None:
        """The pack is durable on this node: pack, index and folder are fsynced."""
        with self._lock:
            self._digests.setdefault(group, set()).add(digest)
            self._coming.get(group, set()).discard(digest)

    def expect(self, group: int, digest: bytes) -> None:
        """The pack comes with an entry that is about to stand in the journal; apply adds it."""
        if not self.has(group, digest):
            with self._lock:
                self._coming.setdefault(group, set()).add(digest)

    def is_expected(self, group: int, digest: bytes) -> bool:
        """Whether apply has yet to write the pack; or its entry was overtaken by another one."""
        return digest in self._coming.get(group, ())

    def discard(self, group: int, digest: bytes) -> None:
        """The last copy is about to go; call this before the files are unlinked."""
        with self._lock:
            self._digests.get(group, set()).discard(digest)

    def digests(self, group: int) -> frozenset[bytes]:
        """All digests held in `group`, as of now."""
        with self._lock:
            return frozenset(self._digests.get(group, ()))

    @classmethod
    def scan(cls, layouts: Mapping[int, GroupLayout]) -> HeldPacks:
        """Reads the folders of all groups; blocking, for the start of a node.

        A name seen here may stem from a rename whose folder was not fsynced before a crash, so that
        is done first.
        """
        held = cls()
        for group, layout in layouts.items():
            fsync_dir(layout.quarantine)
            held._digests[group] = held_packs(layout)
        return held

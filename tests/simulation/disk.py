"""A disk in memory that forgets what was not synced, fails, fills up, and is slow.

Owns the files of one node as the page cache has them and as the disk has them. The journal and the
vote files of the product run on it unchanged: virtual_os.py stands where their modules say `os`,
and `VirtualPath` is a path on such a disk.

What a power cut leaves:

- of a file: all that an fsync covered. Of the rest nothing, all, a prefix, or any sectors of 512
  bytes with zeros for the others (the size may have reached the disk before the data did);
- of a folder: all that its fsync covered, then a prefix of the later creations, renames, removals
  (file systems journal these in order).

After a failed fsync the lost bytes still read well from the page cache, and further fsyncs of that
file succeed without writing them (Rebello et al., USENIX ATC 2020).

Files are only ever appended to or made new; anything else is refused here.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import random
from collections.abc import Iterator

from simulation.events import SimulatedCrash

__all__ = ["Inode", "VirtualDisk", "VirtualPath"]

_SECTOR_BYTES = 512


@dataclasses.dataclass(slots=True, eq=False)
class Inode:
    """One file: what reads see, and how much of it is on the disk."""

    data: bytearray
    durable_bytes: int = 0
    lost: bool = False  # an fsync failed: what it should have written never will be


class VirtualPath:
    """The part of pathlib.Path that journal and vote files use."""

    __slots__ = ("_name", "disk")

    def __init__(self, disk: VirtualDisk, name: str) -> None:
        self.disk = disk
        self._name = name

    def __truediv__(self, name: str) -> VirtualPath:
        return VirtualPath(self.disk, f"{self._name}/{name}")

    def __str__(self) -> str:
        return self._name

    @property
    def name(self) -> str:
        return self._name.rpartition("/")[2]

    @property
    def parent(self) -> VirtualPath:
        return VirtualPath(self.disk, self._name.rpartition("/")[0])

    def with_name(self, name: str) -> VirtualPath:
        return self.parent / name

    def is_dir(self) -> bool:
        return True

    def exists(self) -> bool:
        return self._name in self.disk.names

    def read_bytes(self) -> bytes:
        return bytes(self.disk.inode(self._name).data)

    def iterdir(self) -> Iterator[VirtualPath]:
        folder = self._name + "/"
        return iter(
            [VirtualPath(self.disk, n) for n in sorted(self.disk.names) if n.startswith(folder)]
        )

    def unlink(self) -> None:
        self.disk.unlink(self._name)


class VirtualDisk:
    """The disk of one node."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.names: dict[str, Inode] = {}
        self._durable_names: dict[str, Inode] = {}
        self._unsynced: dict[str, list[tuple[str, ...]]] = {}  # by folder: its changes, in order
        self._inodes: dict[tuple[str, int], Inode] = {}
        self._numbers = itertools.count()
        self._dirty: dict[Inode, str] = {}  # by folder: files whose data is not all on the disk
        self.space_bytes: int | None = None  # left; None: enough
        self.fail_syncs = False  # every fsync fails
        self.sync_s = 0.0  # virtual seconds that an fsync takes, at most
        self.spent_s = 0.0  # virtual seconds spent in fsyncs; whoever drives the node takes them
        self.syncs = 0
        self._crash_at = 0  # operations until a crash; 0: none
        self._crash_after = False
        self._crash_power = False

    @property
    def root(self) -> VirtualPath:
        return VirtualPath(self, "/data")

    # ---- faults

    def crash_soon(self, operations: int, *, power: bool) -> None:
        """The node ends before or after the nth operation that changes something."""
        self._crash_at = operations
        self._crash_after = self._rng.random() < 0.5
        self._crash_power = power

    def repair(self) -> None:
        """Nothing is wrong with it any more."""
        self.space_bytes = None
        self.fail_syncs = False
        self._crash_at = 0

    def _operation(self) -> bool:
        """Counts one; returns whether to crash after it."""
        if self._crash_at:
            self._crash_at -= 1
            if self._crash_at == 0:
                if not self._crash_after:
                    raise SimulatedCrash(power=self._crash_power)
                return True
        return False

    def _done(self, crash: bool) -> None:
        if crash:
            raise SimulatedCrash(power=self._crash_power)

    def lose_power(self) -> None:
        """The page cache is gone."""
        for operations in self._unsynced.values():
            kept = self._rng.choice((0, len(operations), self._rng.randint(0, len(operations))))
            for operation in operations[:kept]:
                self._replay(operation)
        self._unsynced.clear()
        self._dirty.clear()
        self.names = dict(self._durable_names)
        for inode in dict.fromkeys(self.names.values()):
            if inode.durable_bytes < len(inode.data):
                inode.data = self._survivors(inode)
            inode.durable_bytes = len(inode.data)
            inode.lost = False

    def _survivors(self, inode: Inode) -> bytearray:
        data, durable = inode.data, inode.durable_bytes
        rng = self._rng
        kind = rng.choice(("nothing", "all", "prefix", "sectors", "sectors"))
        if inode.lost or kind == "nothing":
            return data[:durable]
        if kind == "all":
            return bytearray(data)
        size = rng.randint(durable, len(data))
        if kind == "prefix":
            return data[:size]
        if rng.random() < 0.7:
            size = len(data)
        result = data[:size]
        odds = rng.choice((0.1, 0.5, 0.9))
        sector = durable - durable % _SECTOR_BYTES
        while sector < size:
            if rng.random() > odds:
                begin, end = max(sector, durable), min(sector + _SECTOR_BYTES, size)
                result[begin:end] = bytes(end - begin)
            sector += _SECTOR_BYTES
        return result

    # ---- folders

    def inode(self, name: str) -> Inode:
        try:
            return self.names[name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from None

    def _change(self, *operation: str) -> None:
        folder = operation[1].rpartition("/")[0]
        self._unsynced.setdefault(folder, []).append(operation)

    def _replay(self, operation: tuple[str, ...]) -> None:
        names = self._durable_names
        if operation[0] == "create":
            names[operation[1]] = self._inodes[operation[1], int(operation[2])]
        elif operation[0] == "rename":
            if operation[1] in names:
                names[operation[2]] = names.pop(operation[1])
        else:
            names.pop(operation[1], None)

    def create(self, name: str) -> Inode:
        crash = self._operation()
        self._forget(name)
        number = next(self._numbers)
        inode = self._inodes[name, number] = self.names[name] = Inode(bytearray())
        self._change("create", name, str(number))
        self._done(crash)
        return inode

    def rename(self, old: str, new: str) -> None:
        crash = self._operation()
        self._forget(new)
        self.names[new] = self.inode(old)
        del self.names[old]
        self._change("rename", old, new)
        self._done(crash)

    def _forget(self, name: str) -> None:
        """Whatever had this name is no part of the folder any more."""
        inode = self.names.get(name)
        if inode is not None:
            self._dirty.pop(inode, None)

    def unlink(self, name: str) -> None:
        crash = self._operation()
        self._forget(name)
        del self.names[name]
        self._change("unlink", name)
        self._done(crash)

    def sync_folder(self, name: str) -> None:
        crash = self._begin_sync()
        for operation in self._unsynced.pop(name, ()):
            self._replay(operation)
        if not self._unsynced:
            self._inodes.clear()
        self._done(crash)

    # ---- files

    def append(self, name: str, inode: Inode, data: bytes | memoryview) -> int:
        crash = self._operation()
        size = len(data)
        if self.space_bytes is not None:
            size = min(size, self.space_bytes)
            self.space_bytes -= size
            if not size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif crash:
            size = self._rng.randint(0, size)
        inode.data += data[:size]
        self._dirty[inode] = name.rpartition("/")[0]
        self._done(crash)
        return size

    def sync(self, inode: Inode) -> None:
        try:
            crash = self._begin_sync()
        except OSError:
            inode.lost = True
            raise
        if not inode.lost:
            inode.durable_bytes = len(inode.data)
            self._dirty.pop(inode, None)
        self._done(crash)

    def _begin_sync(self) -> bool:
        crash = self._operation()
        if self.fail_syncs:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.syncs += 1
        if self.sync_s:
            self.spent_s += self._rng.uniform(0, self.sync_s)
        return crash

    # ---- for the rules

    def all_synced(self, folder: str) -> bool:
        """Whether everything, in the folder by name and in every file, survives a power cut."""
        return folder not in self._dirty.values() and not self._unsynced.get(folder)

    def durable_inode(self, name: str) -> Inode | None:
        """The file that a power cut leaves under a name, as far as it is `durable_bytes` long."""
        return self._durable_names.get(name)

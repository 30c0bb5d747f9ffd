"""In place of `os` in the journal's modules: calls on virtual paths go to a virtual disk.

Owns virtual descriptors. Every other path and descriptor still goes to the real system. This is
the seam: `install` replaces the name `os` in the modules that write journal and vote files, so the
product carries nothing for it.
"""

from __future__ import annotations

import itertools
import os
import random
from typing import Any

from quorepo.cluster.raft import durable, journal, recovery, segment_reader, segment_writer
from simulation.disk import Inode, VirtualDisk, VirtualPath

__all__ = ["VirtualOs", "install"]


class VirtualOs:
    """In place of the module `os`: virtual paths and descriptors here, all others as ever."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[VirtualDisk, str, Inode | None]] = {}
        self._descriptors = itertools.count(1 << 20)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        if not isinstance(path, VirtualPath):
            return os.open(path, flags, mode)
        name = str(path)
        inode: Inode | None = None
        if not flags & os.O_DIRECTORY:
            exists = name in path.disk.names
            new = flags & os.O_CREAT and (not exists or flags & os.O_TRUNC)
            inode = path.disk.create(name) if new else path.disk.inode(name)
        descriptor = next(self._descriptors)
        self._open[descriptor] = (path.disk, name, inode)
        return descriptor

    def close(self, descriptor: int) -> None:
        if self._open.pop(descriptor, None) is None:
            os.close(descriptor)

    def _file(self, descriptor: int) -> tuple[VirtualDisk, Inode]:
        disk, _, inode = self._open[descriptor]
        assert inode is not None
        return disk, inode

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        if descriptor not in self._open:
            return os.write(descriptor, data)
        disk, name, inode = self._open[descriptor]
        assert inode is not None
        return disk.append(name, inode, data)

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        if descriptor not in self._open:
            return os.pread(descriptor, size, offset)
        return bytes(self._file(descriptor)[1].data[offset : offset + size])

    def fdatasync(self, descriptor: int) -> None:
        if descriptor not in self._open:
            os.fdatasync(descriptor)
            return
        disk, inode = self._file(descriptor)
        disk.sync(inode)

    def fsync(self, descriptor: int) -> None:
        if descriptor not in self._open:
            os.fsync(descriptor)
            return
        disk, name, inode = self._open[descriptor]
        if inode is None:
            disk.sync_folder(name)
        else:
            disk.sync(inode)

    def rename(self, old: Any, new: Any) -> None:
        if isinstance(old, VirtualPath):
            old.disk.rename(str(old), str(new))
        else:
            os.rename(old, new)

    def unlink(self, path: Any) -> None:
        if isinstance(path, VirtualPath):
            path.disk.unlink(str(path))
        else:
            os.unlink(path)

    def forget_all(self) -> None:
        """The processes that had virtual files open are gone."""
        self._open.clear()


class _NoLock:
    """In place of durable.DirectoryLock: a virtual disk has one user."""

    def __init__(self, path: Any, wait_s: float = 0.0) -> None:
        pass

    def release(self) -> None:
        pass


class _CountedSecrets:
    """In place of the module `secrets`: salts of segments that are the same in every run."""

    def __init__(self) -> None:
        self.rng = random.Random(0)

    def token_bytes(self, size: int) -> bytes:
        return self.rng.randbytes(size)


_os = VirtualOs()
_secrets = _CountedSecrets()


def install(seed: int) -> None:
    """Puts the virtual system under the journal's modules; once per schedule."""
    _os.forget_all()
    _secrets.rng.seed(seed)
    for module in (durable, journal, segment_reader, segment_writer):
        vars(module)["os"] = _os
    vars(recovery)["secrets"] = _secrets
    if not isinstance(vars(journal)["DirectoryLock"], _LockSwitch):
        vars(journal)["DirectoryLock"] = _LockSwitch(durable.DirectoryLock)


class _LockSwitch:
    """Locks real folders only."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __call__(self, path: Any, wait_s: float = 0.0) -> Any:
        return _NoLock(path) if isinstance(path, VirtualPath) else self._real(path, wait_s)

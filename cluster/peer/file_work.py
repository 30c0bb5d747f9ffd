"""File work of the pack exchange on threads of its own, and what its failures mean."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from quorepo.storage.errors import FatalError, StorageFull, Unavailable
from quorepo.storage.logs import fields

__all__ = ["FileWork"]

log = logging.getLogger(__name__)

T = TypeVar("T")


class FileWork:
    """Runs blocking functions; used on the event loop."""

    def __init__(self, threads: int, on_fatal: Callable[[FatalError], None]) -> None:
        """`on_fatal` is told of a disk error after which this process must not go on."""
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="packs")
        self._on_fatal = on_fatal

    async def close(self) -> None:
        """Waits for what is under way; later calls raise Unavailable."""
        await asyncio.get_running_loop().run_in_executor(None, self._executor.shutdown)

    async def read(self, function: Callable[..., T], *arguments: Any) -> T:
        """Reading; a failure fails this call only, since another node has the pack as well."""
        try:
            return await self._run(function, *arguments)
        except OSError as error:
            log.error("pack not readable", extra=fields(error=str(error)))
            raise Unavailable(f"the pack cannot be read here: {error}") from error

    async def write(self, function: Callable[..., T], *arguments: Any) -> T:
        """Writing; a full disk is survived, any other disk error ends the process (`on_fatal`)."""
        try:
            return await self._run(function, *arguments)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull(f"no room for the pack: {error.strerror}") from error
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise Unavailable(f"no file can be opened now: {error.strerror}") from error
            fatal = FatalError(
                f"writing a pack failed: {error}; check the disk below data_dir",
                exit_code=FatalError.EXIT_IO_ERROR,
            )
            self._on_fatal(fatal)
            raise fatal from error

    def soon(self, function: Callable[[], None]) -> None:
        """Closes files, not awaited: the caller may be in the middle of a cancellation."""
        try:
            self._executor.submit(function)
        except RuntimeError:  # closed meanwhile
            function()

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        try:
            future = loop.run_in_executor(self._executor, function, *arguments)
        except RuntimeError as error:
            raise Unavailable("this node is shutting down") from error
        return await future

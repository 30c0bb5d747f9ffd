"""Whoever has the log has the packs: the gate before the journal (architecture, invariant 2)."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from quorepo.cluster.peer.clients import PeerAddress
from quorepo.cluster.peer.held import HeldPacks
from quorepo.cluster.raft.interface import PackNeed
from quorepo.cluster.replacements import Replacement, ReplacementChecks, replacement_of
from quorepo.cluster.state.commands import decode_command
from quorepo.cluster.state.levels import LEVEL, level_of
from quorepo.cluster.state.pack_table import PackPlace
from quorepo.internal.v1 import log_pb2, peer_pb2
from quorepo.storage.errors import FatalError, QuorepoError, Unavailable
from quorepo.storage.logs import fields

__all__ = ["PackFetcher", "StagedPackGate", "pack_header", "pack_needs", "packs_inside"]

log = logging.getLogger(__name__)

_RETRY_INTERVAL_S = 0.2
# A wrong replacement stays wrong: the log waits for an operator, or for a leader that drops it.
_REFUSED_INTERVAL_S = 30.0


class UncheckedReplacement(PackNeed):
    """The pack of a replacement that is held and has yet to pass its check."""


def pack_needs(command: log_pb2.Command) -> list[PackNeed]:
    """The packs that a command adds and does not bring along."""
    match command.WhichOneof("kind"):
        case "transaction":
            repository_id = command.transaction.repository_id
            packs = command.transaction.packs_added
        case "replace_packs":
            repository_id = command.replace_packs.repository_id
            packs = command.replace_packs.added
        case "prune":
            repository_id = command.prune.repository_id
            packs = command.prune.added
        case _:
            return []
    return [
        PackNeed(
            repository_id=repository_id,
            digest=pack.digest,
            index_digest=pack.index_digest,
            pack_bytes=pack.pack_bytes,
            index_bytes=pack.index_bytes,
        )
        for pack in packs
        if pack.encoding != log_pb2.PACK_ENCODING_INLINE
    ]


def packs_inside(command: log_pb2.Command) -> list[log_pb2.PackAddition]:
    """The packs whose bytes are in the command."""
    return [
        pack
        for pack in command.transaction.packs_added
        if pack.encoding == log_pb2.PACK_ENCODING_INLINE
    ]


def pack_header(group: int, need: PackNeed | PackPlace) -> peer_pb2.PackHeader:
    """The same pack in the words of the peer API."""
    return peer_pb2.PackHeader(
        group=group,
        digest=need.digest,
        index_digest=need.index_digest,
        pack_bytes=need.pack_bytes,
        index_bytes=need.index_bytes,
        repository_id=need.repository_id,
    )


class PackFetcher(Protocol):
    """Brings a pack from the first of the given nodes that has it; cluster/peer/packs.py does."""

    async def fetch(self, peers: Sequence[PeerAddress], header: peer_pb2.PackHeader) -> None: ...


class StagedPackGate:
    """Implements `raft.interface.PackGate` over the set of packs that this node holds durably."""

    def __init__(
        self,
        held: HeldPacks,
        fetcher: PackFetcher,
        loop: asyncio.AbstractEventLoop,
        sources: Callable[[int, str], Sequence[PeerAddress]],
        checks: ReplacementChecks | None = None,
        level: int = LEVEL,
    ) -> None:
        """`sources(group, from_replica)` gives peers to ask, the best one first.

        Without `checks`, no entry that replaces packs passes.

        `packs_arrived` is set by whoever makes the engine, which needs the gate to be made.
        """
        self._held = held
        self._fetcher = fetcher
        self._loop = loop
        self._sources = sources
        self.packs_arrived: Callable[[int], None] = lambda group: None
        self._checks = checks
        self._level = level
        self._running: dict[bytes, asyncio.Task[None]] = {}

    def missing(self, group: int, data: bytes) -> Sequence[PackNeed]:
        # A command without packs is the common case in the directory; parsing costs about 5 us.
        command = decode_command(data)
        if level_of(command) > self._level:
            raise FatalError(
                f"a log entry needs level {level_of(command)}, and this program knows level "
                f"{self._level}: start a newer quorepo on this node",
                exit_code=FatalError.EXIT_CONFIG,
            )
        for pack in packs_inside(command):
            self._held.expect(group, pack.digest)
        needs = [n for n in pack_needs(command) if not self._held.has(group, n.digest)]
        replacement = replacement_of(command)
        if needs or replacement is None:
            return needs
        if self._checks is not None and self._checks.passed(group, replacement):
            return ()
        self._loop.call_soon_threadsafe(self._start_check, group, replacement)
        return [UncheckedReplacement(replacement.repository_id, b"", b"", 0, 0)]

    def want(self, group: int, needs: Sequence[PackNeed], from_replica: str) -> None:
        self._loop.call_soon_threadsafe(self._start, group, list(needs), from_replica)

    def _start(self, group: int, needs: list[PackNeed], from_replica: str) -> None:
        for need in needs:
            if isinstance(need, UncheckedReplacement):
                continue  # its check began when it was found missing
            if need.digest in self._running or self._held.has(group, need.digest):
                continue
            task = self._loop.create_task(self._fetch(group, need, from_replica))
            self._running[need.digest] = task
            task.add_done_callback(functools.partial(self._ended, need.digest))

    def _ended(self, digest: bytes, _: asyncio.Task[None]) -> None:
        self._running.pop(digest, None)

    async def _fetch(self, group: int, need: PackNeed, from_replica: str) -> None:
        try:
            await self._fetcher.fetch(self._sources(group, from_replica), pack_header(group, need))
        except QuorepoError as error:
            # The leader sends the entry again with its next heartbeat, and the fetch starts anew.
            log.warning("pack not fetched", extra=fields(pack=need.digest, error=str(error)))
            await asyncio.sleep(_RETRY_INTERVAL_S)
            return
        self.packs_arrived(group)

    def _start_check(self, group: int, replacement: Replacement) -> None:
        if any(d in self._running and not self._held.has(group, d) for d in replacement.removed):
            # The entry was only looked ahead at, and packs that it removes are on their way: it
            # would be judged by a part of them, and again when its turn comes.
            return
        name = replacement.SerializeToString(deterministic=True)
        if self._checks is not None and name not in self._running:
            task = self._loop.create_task(self._check(self._checks, group, replacement))
            self._running[name] = task
            task.add_done_callback(functools.partial(self._ended, name))

    async def _check(self, checks: ReplacementChecks, group: int, replacement: Replacement) -> None:
        try:
            await checks.check(group, replacement)
        except Unavailable as error:
            log.info("replacement not checked yet", extra=fields(group=group, error=str(error)))
            await asyncio.sleep(_RETRY_INTERVAL_S)
            return
        except QuorepoError as error:
            log.error(
                "a replacement does not pass, and the log of this replica waits behind it",
                extra=fields(group=group, repository=replacement.repository_id, error=str(error)),
            )
            await asyncio.sleep(_REFUSED_INTERVAL_S)
            return
        self.packs_arrived(group)

    async def close(self) -> None:
        """Cancels the fetches and checks under way; what they staged in part is swept."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

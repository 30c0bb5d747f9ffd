"""Brings a snapshot to this replica when the leader's log does not reach back to what it lacks.

Owns the order: database, packs, then the switch, then the word to the leader (which the engine
gives). Everything is resumed: the database by its digest and offset, packs by digest, after a
restart of either side too. Pulled slower than the network would allow, so that neither clients nor
Raft notice. Must not know how files are staged (staging.py) or sent (source.py).

The switch of a group, in order, so that nobody runs into it:

    engine    begin_install     takes no entries, hands nothing over; heartbeats go on
    apply     pause             the batch in hand ends, what is queued is forgotten
    here      put_into_force    packs, then the next generation of the state
    apply     resume            with the new state
    engine    finish_install    the log begins anew behind the snapshot; the leader is told
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

from grpc import aio

from quorepo.cluster.apply import ApplyThread
from quorepo.cluster.gate import pack_header
from quorepo.cluster.metrics import ClusterMetrics
from quorepo.cluster.peer.clients import PeerAddress, PeerClients, from_rpc_error
from quorepo.cluster.peer.held import HeldPacks
from quorepo.cluster.peer.packs import PackExchange
from quorepo.cluster.raft.host import RaftHost
from quorepo.cluster.raft.interface import RaftConfig
from quorepo.cluster.snapshot.pace import Pace
from quorepo.cluster.snapshot.source import KEPT_S
from quorepo.cluster.snapshot.staging import FORMAT_VERSION, StagedSnapshot
from quorepo.cluster.state.pack_table import PackPlace
from quorepo.cluster.state.store import StateStore
from quorepo.internal.v1 import core_pb2, log_pb2, peer_pb2
from quorepo.storage.disk_space import DiskReserve
from quorepo.storage.errors import FatalError, InvalidArgument, QuorepoError, Unavailable
from quorepo.storage.layout import GroupLayout
from quorepo.storage.logs import fields

__all__ = ["SnapshotReceiver"]

log = logging.getLogger(__name__)

_RETRY_INTERVAL_S = 1.0
_OPEN_TIMEOUT_S = 600.0  # a copy of a large state takes a while
_READ_TIMEOUT_S = 6 * 3600.0
_BATCH_BYTES = 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class _Offer:
    index_min: int
    configuration: log_pb2.Configuration
    leader: str


class SnapshotReceiver:
    """Implements `raft.interface.SnapshotClient`; lives in the core's event loop."""

    def __init__(
        self,
        *,
        replica_id: str,
        layouts: Mapping[int, GroupLayout],
        stores: MutableMapping[int, StateStore],
        locks: Mapping[int, asyncio.Lock],
        apply: ApplyThread,
        packs: PackExchange,
        held: HeldPacks,
        clients: PeerClients,
        space: DiskReserve,
        config: RaftConfig,
        metrics: ClusterMetrics,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        """`stores` gets the new store of a group; `locks` keep others from the one that goes.

        `host` is set by whoever makes the engine, which needs this to be made.
        """
        self._replica_id = replica_id
        self._layouts = layouts
        self._stores = stores
        self._locks = locks
        self._apply = apply
        self._packs = packs
        self._held = held
        self._clients = clients
        self._space = space
        self._config = config
        self._metrics = metrics
        self._on_fatal = on_fatal
        self._loop = asyncio.get_running_loop()
        self._offers: dict[int, _Offer] = {}
        self._running: dict[int, asyncio.Task[None]] = {}
        self._switches: set[asyncio.Task[bool]] = set()
        self._wanted: dict[int, frozenset[bytes]] = {}
        self._progress: dict[int, core_pb2.CatchUpProgress] = {}
        self.host: RaftHost | None = None

    def offered(
        self, group: int, index_min: int, configuration: log_pb2.Configuration, leader: str
    ) -> None:
        offer = _Offer(index_min, configuration, leader)
        with contextlib.suppress(RuntimeError):  # the loop is closed: the node is stopping
            self._loop.call_soon_threadsafe(self._start, group, offer)

    def active(self, group: int) -> bool:
        """Whether a snapshot of the group is on its way."""
        return group in self._running

    def progress(self, group: int) -> core_pb2.CatchUpProgress | None:
        """How far the snapshot of the group is that is on its way; None without one."""
        return self._progress.get(group)

    def wanted(self, group: int) -> frozenset[bytes]:
        """Packs in quarantine that wait for their snapshot: not to be swept."""
        return self._wanted.get(group, frozenset())

    async def close(self) -> None:
        """Ends the pulls, whose files are used after a restart; a switch comes to its end."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._switches, return_exceptions=True)

    def _start(self, group: int, offer: _Offer) -> None:
        self._offers[group] = offer
        if group not in self._running:
            task = self._loop.create_task(self._run(group), name=f"snapshot of group {group}")
            self._running[group] = task

    async def _run(self, group: int) -> None:
        """One attempt; the leader's next offer starts the next one."""
        started = time.perf_counter()
        outcome = "failed"
        try:
            outcome = "installed" if await self._pull(group) else "not needed"
        except QuorepoError as error:
            log.warning("no snapshot yet", extra=fields(group=group, error=str(error)))
            await asyncio.sleep(_RETRY_INTERVAL_S)
        except asyncio.CancelledError:
            outcome = "interrupted"
            raise
        except BaseException as error:
            self._on_fatal(error)
            raise
        finally:
            self._wanted.pop(group, None)
            self._progress.pop(group, None)
            self._running.pop(group, None)
            self._metrics.snapshot_received(group, outcome, time.perf_counter() - started)

    async def _pull(self, group: int) -> bool:
        offer = self._offers[group]
        sources = self._sources(offer)
        self._space.check_new()
        manifest = await self._open(sources[0], group, offer.index_min)
        staged = await self._packs.write_file(StagedSnapshot.begin, self._layouts[group], manifest)
        log.info(
            "receiving a snapshot",
            extra=fields(
                group=group, index=manifest.index, source=sources[0].node,
                bytes=manifest.database_bytes, had=staged.received_bytes,
            ),
        )  # fmt: skip
        progress = self._progress[group] = core_pb2.CatchUpProgress(
            doing="snapshot",
            bytes_done=staged.received_bytes,
            bytes_total=manifest.database_bytes + manifest.pack_bytes,
            packs_total=manifest.pack_count,
        )
        pace = Pace(self._config.snapshot_bytes_per_s)
        self._space.check_new(manifest.database_bytes - staged.received_bytes)
        if not staged.complete:
            await self._read(sources[0], staged, pace)
            await self._packs.write_file(staged.verify)
        progress.bytes_done, progress.doing = manifest.database_bytes, "packs"
        packs = await self._in_thread(staged.packs)
        self._wanted[group] = frozenset(pack.digest for pack in packs)
        async with self._kept(sources[0], manifest):
            await self._fetch_packs(group, sources, packs, pace)
            # Nobody may interrupt it halfway; a node that is stopping waits for it.
            switch = self._loop.create_task(self._install(group, staged))
            self._switches.add(switch)
            switch.add_done_callback(self._switches.discard)
            return await asyncio.shield(switch)

    def _sources(self, offer: _Offer) -> list[PeerAddress]:
        """The leader first: it is the one that keeps its log for us."""
        others = [r for r in offer.configuration.replicas if r.replica_id != self._replica_id]
        others.sort(key=lambda r: r.replica_id != offer.leader)
        if not others or others[0].replica_id != offer.leader:
            raise Unavailable(f"replica {offer.leader!r} leads and is in no configuration")
        return [PeerAddress(r.node, r.peer_address) for r in others if r.stores_packs]

    # ---- the database

    async def _open(
        self, source: PeerAddress, group: int, index_min: int
    ) -> peer_pb2.SnapshotManifest:
        request = peer_pb2.OpenSnapshotRequest(group=group, index_min=index_min)
        call: Any = self._clients.stub(source).OpenSnapshot(request, timeout=_OPEN_TIMEOUT_S)
        try:
            manifest: peer_pb2.SnapshotManifest = await call
        except aio.AioRpcError as error:
            raise from_rpc_error(source, error) from error
        if manifest.format_version != FORMAT_VERSION:
            raise InvalidArgument(
                f"snapshots of {source} have format {manifest.format_version}, this program knows "
                f"{FORMAT_VERSION}",
                next_step="bring all nodes to one version of quorepo",
            )
        if manifest.group != group or manifest.index < index_min or not manifest.database_bytes:
            raise InvalidArgument(f"{source} offers a snapshot that nobody asked for")
        return manifest

    async def _read(self, source: PeerAddress, staged: StagedSnapshot, pace: Pace) -> None:
        manifest = staged.manifest
        request = peer_pb2.ReadSnapshotRequest(
            group=manifest.group,
            database_digest=manifest.database_digest,
            offset=staged.received_bytes,
        )
        call: Any = self._clients.stub(source).ReadSnapshot(request, timeout=_READ_TIMEOUT_S)
        batch: list[bytes] = []
        size = 0
        left = manifest.database_bytes - request.offset
        try:
            async for response in call:
                batch.append(response.chunk)
                size += len(response.chunk)
                left -= len(response.chunk)
                if left < 0:
                    raise InvalidArgument(f"{source} sends more than it announced")
                if size >= _BATCH_BYTES or not left:
                    await self._write(staged, batch, pace)
                    batch, size = [], 0
        except aio.AioRpcError as error:
            raise from_rpc_error(source, error) from error
        finally:
            call.cancel()

    async def _write(self, staged: StagedSnapshot, batch: Sequence[bytes], pace: Pace) -> None:
        size = sum(map(len, batch))
        await pace(size)
        self._space.check_new(size)
        await self._packs.write_file(staged.write, batch)
        self._metrics.snapshot_bytes.labels(staged.manifest.group, "received").inc(size)
        if (progress := self._progress.get(staged.manifest.group)) is not None:
            progress.bytes_done += size

    # ---- the packs

    async def _fetch_packs(
        self, group: int, sources: Sequence[PeerAddress], packs: Sequence[PackPlace], pace: Pace
    ) -> None:
        missing = {p.digest: p for p in packs if not self._held.has(group, p.digest)}
        size = sum(map(_pack_size, missing.values()))
        progress = self._progress[group]
        progress.packs_done = len(packs) - len(missing)
        progress.bytes_done += sum(map(_pack_size, packs)) - size
        self._space.check_new(size)
        log.info("packs of a snapshot", extra=fields(group=group, missing=len(missing), bytes=size))
        waiting = list(missing.values())

        async def work() -> None:
            while waiting:
                pack = waiting.pop(0)
                await self._packs.fetch(sources, pack_header(group, pack), pace=pace)
                progress.packs_done += 1
                progress.bytes_done += _pack_size(pack)

        workers = [asyncio.create_task(work()) for _ in range(self._config.snapshot_fetches_max)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _kept(self, source: PeerAddress, manifest: peer_pb2.SnapshotManifest) -> Any:
        """Tells the source from time to time that its copy, and its log, are still needed."""

        async def tell() -> None:
            request = peer_pb2.ReadSnapshotRequest(
                group=manifest.group,
                database_digest=manifest.database_digest,
                offset=manifest.database_bytes,
            )
            while True:
                await asyncio.sleep(KEPT_S / 4)
                with contextlib.suppress(aio.AioRpcError):  # then it is not kept, and may suffice
                    async for _ in self._clients.stub(source).ReadSnapshot(request, timeout=10.0):
                        pass

        teller = asyncio.create_task(tell())
        try:
            yield
        finally:
            teller.cancel()
            await asyncio.gather(teller, return_exceptions=True)

    # ---- the switch

    async def _install(self, group: int, staged: StagedSnapshot) -> bool:
        manifest = staged.manifest
        host = self.host
        assert host is not None
        index, term = manifest.index, manifest.term
        try:
            async with self._locks[group]:
                begun = await asyncio.wrap_future(
                    host.run_on(group, lambda raft: raft.begin_install(index, term))
                )
                if begun:
                    await self._in_thread(self._switch, group, staged)
                    await asyncio.wrap_future(
                        host.run_on(
                            group,
                            lambda raft: raft.finish_install(index, term, manifest.configuration),
                        )
                    )
                await self._in_thread(staged.discard)
        except Unavailable:
            raise  # the host stopped: the start of the node goes on from here
        except (QuorepoError, OSError) as error:
            # Half of the switch may be done: recovery knows what to do, this process does not.
            raise FatalError(
                f"putting a snapshot of group {group} into force failed: {error}",
                exit_code=FatalError.EXIT_IO_ERROR,
            ) from error
        if begun:
            log.info("snapshot installed", extra=fields(group=group, index=index))
        return begun

    def _switch(self, group: int, staged: StagedSnapshot) -> None:
        self._apply.pause(group)
        self._stores[group].close()
        staged.put_into_force()
        store = StateStore.open(self._layouts[group])
        self._stores[group] = store
        self._apply.resume(group)

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await self._loop.run_in_executor(None, function, *arguments)


def _pack_size(pack: PackPlace) -> int:
    return pack.pack_bytes + pack.index_bytes

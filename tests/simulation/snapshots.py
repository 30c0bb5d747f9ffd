"""Catching up by a snapshot on a simulated node: source.py and receiver.py, in virtual time.

The product's own are the manifest (`SnapshotSource._describe`), the pins that keep a log, the
staging (`StagedSnapshot`, real files in memory), the switch of generations, the repair at a start
(`finish_interrupted`) and everything of the engine. Imitated, because the product's needs an event
loop and TLS: the order of a pull, as in `SnapshotReceiver`, one event for each of its steps, with a
network that is slow, cut or at the other end of a restart in between, and the node's end at any
failpoint within a step. Packs are digests.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, cast

from quorepo.cluster.raft.group import RaftGroup
from quorepo.cluster.snapshot import source as source_module
from quorepo.cluster.snapshot.source import SnapshotSource
from quorepo.cluster.snapshot.staging import StagedSnapshot
from quorepo.cluster.state.pack_table import PackPlace
from quorepo.internal.v1 import log_pb2, peer_pb2
from quorepo.storage import failpoints
from quorepo.storage.errors import FatalError, NotFound, QuorepoError, Unavailable
from simulation.events import SimulatedCrash, Violation

if TYPE_CHECKING:
    from simulation.node import Node

__all__ = ["Snapshots"]

_RETRY_INTERVAL_S = 1.0
_COPIES_MAX = 2


class _Staged(StagedSnapshot):
    """The product's, but for packs, which are no files here."""

    node: Node

    def _promote(self, packs: Iterable[PackPlace]) -> None:
        missing = [pack.digest for pack in packs if pack.digest not in self.node.packs]
        if missing:
            raise Violation(f"packs: {self.node} installs a snapshot without {len(missing)} packs")


class _Source(SnapshotSource):
    """Copies of this node's states; gone with the process."""

    def __init__(self, node: Node) -> None:
        super().__init__(
            stores={},
            layouts={group: cast(Any, None) for group in node.states},
            locks={},
            founding=node.world.founding,
            space=cast(Any, None),
            metrics=cast(Any, None),
            monotonic=lambda: node.events.now,
        )
        self._node = node

    def open_now(self, group: int, index_min: int) -> peer_pb2.SnapshotManifest:
        """`open`, without an event loop."""
        self._expire(group)
        state = self._node.states[group]
        for copy in self._copies[group]:
            if copy.manifest.index >= index_min:
                copy.used_at = self._monotonic()
                return copy.manifest
        if state.applied_index < index_min:
            raise Unavailable("the state is not that far here")
        if len(self._copies[group]) >= _COPIES_MAX:
            raise Unavailable("enough snapshots are being read")
        path = self._node.world.new_file()
        position = state.copy_to(path)
        manifest = self._describe(path, position)
        now = self._monotonic()
        self._copies[group].append(source_module._Copy(path, manifest, now, now))
        self._node.world.rules.note_digest(self._node, group, manifest.index, state.digest())
        self._node.world.count("snapshots made")
        return manifest

    def read_now(self, group: int, digest: bytes, offset: int, size: int) -> bytes:
        for copy in self._copies[group]:
            if copy.manifest.database_digest == digest:
                copy.used_at = self._monotonic()
                return copy.path.read_bytes()[offset : offset + size]
        raise NotFound("this snapshot is not kept here any more")

    def close(self) -> None:
        for copies in self._copies.values():
            for copy in copies:
                copy.path.unlink(missing_ok=True)
            copies.clear()


@dataclasses.dataclass(slots=True)
class _Pull:
    """One attempt of a group."""

    group: int
    source: Node
    source_life: int
    manifest: peer_pb2.SnapshotManifest = dataclasses.field(
        default_factory=peer_pb2.SnapshotManifest
    )
    staged: _Staged | None = None


class Snapshots:
    """Both sides of one node, for one life of its process. Implements SnapshotClient."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._life = node.life
        self._rng = node.rng
        self._source = _Source(node)
        self._offers: dict[int, tuple[int, str]] = {}
        self._running: dict[int, _Pull] = {}
        self._crash_in = 0  # failpoints until the process ends; 0: it does not

    @property
    def pulling_from(self) -> Mapping[int, Node]:
        """Who is asked for a snapshot, by group."""
        return {group: pull.source for group, pull in self._running.items()}

    def pinned_index(self, group: int) -> int | None:
        return self._source.pinned_index(group)

    def close(self) -> None:
        self._source.close()

    def offered(
        self, group: int, index_min: int, configuration: log_pb2.Configuration, leader: str
    ) -> None:
        self._offers[group] = (index_min, leader)
        if group not in self._running:
            source = self._node.world.nodes[leader]
            self._running[group] = pull = _Pull(group, source, source.life)
            self._node.world.count("snapshots offered")
            self._later(self._open, pull)

    # ---- one step after another

    def _later(self, step: Callable[[_Pull], None], pull: _Pull, after_s: float = 0.0) -> None:
        low_s, high_s = self._node.world.network.delay_s
        delay_s = after_s + self._rng.uniform(low_s, 2 * high_s)
        self._node.events.after(delay_s, functools.partial(self._step, step, pull))

    def _step(self, step: Callable[[_Pull], None], pull: _Pull) -> None:
        node = self._node
        if node.life != self._life:
            return
        if node.events.now < node.busy_until:  # a stopped process
            self._later(step, pull, node.busy_until - node.events.now)
            return
        try:
            with self._crash_somewhere():
                step(pull)
        except SimulatedCrash as crash:
            node.world.count(f"ended in a snapshot: {step.__name__.strip('_')}")
            node.end(power=crash.power)
            node.world.restart_later(node)
        except QuorepoError as error:
            if step == self._switch:
                raise Violation(f"{node} stops in the middle of a switch: {error}") from error
            node.events.note(f"no snapshot for {node}: {error.__class__.__name__}")
            node.world.count("snapshot pulls that failed")
            node.events.after(_RETRY_INTERVAL_S, functools.partial(self._ended, pull.group))
        except FatalError as error:
            raise Violation(f"{node} ended in a snapshot: {error}") from error

    def _ended(self, group: int) -> None:
        self._running.pop(group, None)

    @contextlib.contextmanager
    def _crash_somewhere(self) -> Iterator[None]:
        """The node ends at one of the next failpoints, of this step or a later one."""
        world = self._node.world
        if not self._crash_in and self._rng.random() < world.setting.snapshot_crash_odds:
            self._crash_in = self._rng.choice((1, 2, 3, 4, 6, 7, 8, 9))
        if world.healed or not self._crash_in:
            yield
            return

        def hit(name: str) -> None:
            self._crash_in -= 1
            if not self._crash_in:
                raise SimulatedCrash(power=self._rng.random() < 0.6)

        module = cast(Any, failpoints)
        original = module._hit
        module._hit, module._enabled["simulation"] = hit, None
        try:
            yield
        finally:
            module._hit = original
            del module._enabled["simulation"]

    def _reach(self, pull: _Pull) -> Node:
        """The source, if a call to it gets through. Raises Unavailable."""
        node, source = self._node, pull.source
        blocked = node.world.network.blocked
        there, back = (node.replica_id, source.replica_id), (source.replica_id, node.replica_id)
        if (
            source.life != pull.source_life
            or not source.life
            or there in blocked
            or back in blocked
        ):
            raise Unavailable(f"{source} is not to be reached")
        return source

    # ---- the pull

    def _open(self, pull: _Pull) -> None:
        index_min, leader = self._offers[pull.group]
        pull.source = self._node.world.nodes[leader]
        pull.source_life = pull.source.life
        source = self._reach(pull)
        assert source.snapshots is not None
        pull.manifest = source.snapshots._source.open_now(pull.group, index_min)
        self._later(self._begin, pull)

    def _begin(self, pull: _Pull) -> None:
        layout = self._node.states[pull.group].layout()
        pull.staged = cast(_Staged, _Staged.begin(layout, pull.manifest))
        pull.staged.node = self._node
        if pull.staged.received_bytes:
            self._node.world.count("snapshot pulls gone on with")
        self._later(self._read, pull)

    def _read(self, pull: _Pull) -> None:
        manifest, staged = pull.manifest, pull.staged
        assert staged is not None
        offset = staged.received_bytes
        if offset >= manifest.database_bytes:
            self._later(self._verify, pull)
            return
        source = self._reach(pull)
        assert source.snapshots is not None
        size = math.ceil(manifest.database_bytes / self._node.world.setting.snapshot_chunks)
        digest = manifest.database_digest
        staged.write([source.snapshots._source.read_now(pull.group, digest, offset, size)])
        # Once all is healed no link is that slow any more: what is asked for then has a time limit
        # (20261124001006: a voter that pulls twice, the first part torn by a power cut).
        slow_s = min(self._node.world.setting.snapshot_s, 0.05 if self._node.world.healed else 60.0)
        self._later(self._read, pull, self._rng.random() * slow_s)

    def _verify(self, pull: _Pull) -> None:
        assert pull.staged is not None
        pull.staged.verify()
        self._later(self._fetch, pull)

    def _fetch(self, pull: _Pull) -> None:
        """One pack after another; the source's copy is kept meanwhile."""
        node, staged = self._node, pull.staged
        assert staged is not None
        missing = [pack.digest for pack in staged.packs() if pack.digest not in node.packs]
        if not missing:
            self._install(pull)
            return
        source = self._reach(pull)
        fails = not node.world.healed and self._rng.random() < node.world.setting.fetch_fails
        if fails or missing[0] not in source.packs:
            raise Unavailable("nobody has that pack now")
        node.packs.add(missing[0])
        self._later(self._fetch, pull)

    # ---- the switch

    def _run_on(
        self,
        pull: _Pull,
        action: Callable[[RaftGroup], Any],
        then: Callable[[Any], None],
    ) -> None:
        """`action` on the Raft thread, `then` some time after it."""
        node = self._node
        assert node.host is not None

        def done(future: Future[Any]) -> None:
            then(future.result())

        node.host.run_on(pull.group, action).add_done_callback(done)
        node.wake()

    def _install(self, pull: _Pull) -> None:
        index, term = pull.manifest.index, pull.manifest.term

        def begun(answer: bool) -> None:
            if not answer:
                self._node.world.count("snapshots not needed any more")
            self._later(self._switch if answer else self._discard, pull)

        self._run_on(pull, lambda raft: raft.begin_install(index, term), begun)

    def _switch(self, pull: _Pull) -> None:
        node, group, staged = self._node, pull.group, pull.staged
        assert staged is not None
        node.forget_queued(group)
        state = node.states[group]
        before = state.position
        if before.applied_index >= pull.manifest.index:
            raise Violation(f"snapshots: {node} goes back from {before} to {pull.manifest.index}")
        state.close_for_switch()
        staged.put_into_force()
        state.open_switched()
        self._check_switched(pull, before.log_time_ms)
        # What apply had reported comes before: one thread posts them.
        self._later(self._finish, pull, max(0.0, node.reported_at - node.events.now))

    def _check_switched(self, pull: _Pull, log_time_ms: int) -> None:
        node, group, manifest = self._node, pull.group, pull.manifest
        position = node.states[group].position
        if (position.applied_index, position.applied_term) != (manifest.index, manifest.term):
            raise Violation(f"snapshots: {node} has {position} after the switch to {manifest}")
        if position.log_time_ms < log_time_ms:
            raise Violation(f"clocks: log time of {node} goes back by a snapshot")
        node.world.rules.note_digest(node, group, manifest.index, node.states[group].digest())

    def _finish(self, pull: _Pull) -> None:
        node, manifest = self._node, pull.manifest
        if not node.world.healed and self._rng.random() < node.world.setting.snapshot_crash_odds:
            node.disk.crash_soon(self._rng.randint(1, 5), power=self._rng.random() < 0.6)

        def finished(_: None) -> None:
            self._node.world.count("snapshots installed")
            self._node.events.note(f"{self._node} has installed a snapshot at {manifest.index}")
            self._later(self._discard, pull)

        self._run_on(
            pull,
            lambda raft: raft.finish_install(manifest.index, manifest.term, manifest.configuration),
            finished,
        )

    def _discard(self, pull: _Pull) -> None:
        assert pull.staged is not None
        pull.staged.discard()
        self._ended(pull.group)

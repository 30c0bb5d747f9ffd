"""The cluster of one schedule: nodes, network, clients, rules, put together by a Setting.

Owns: who there is, and the end of a schedule: everything works again, and has to, in bounded
time. What goes wrong before is faults.py's.
"""

from __future__ import annotations

import collections
import functools
import random
import shutil
from concurrent.futures import Future
from pathlib import Path

from support.raft_cluster import voter

from quorepo.cluster.gate import pack_needs
from quorepo.cluster.raft.interface import PackNeed
from quorepo.cluster.snapshot import source as snapshot_source
from quorepo.internal.v1 import log_pb2
from quorepo.storage.errors import QuorepoError
from simulation.client import Clients
from simulation.events import Events, Violation
from simulation.network import Network
from simulation.node import Node
from simulation.rules import Rules
from simulation.setting import Setting
from simulation.state import scratch_folder
from simulation.virtual_os import install

__all__ = ["Cluster"]


class Cluster:
    """Everything of one schedule."""

    def __init__(self, events: Events, setting: Setting) -> None:
        install(events.rng.getrandbits(32))
        self.events = events
        self.rng: random.Random = events.rng
        self.setting = setting
        self.groups = setting.groups
        self.rules = Rules(setting.groups)
        vars(snapshot_source)["KEPT_S"] = setting.snapshot_kept_s
        self.rules.may_expire = setting.large_clock_steps
        self.network = Network(events)
        self.network.delay_s = setting.delay_s
        self.network.patience_s = setting.patience_s
        self.clients = Clients(self)
        self.counts: collections.Counter[str] = collections.Counter()
        self._files = 0
        self._scratch: Path | None = None
        self._needs: dict[bytes, list[PackNeed]] = {}
        self.healed = False
        founders = [voter(f"n{number}@1") for number in range(setting.voters)]
        self.founding = log_pb2.Configuration(replicas=founders)
        self.nodes: dict[str, Node] = {}
        for replica in founders:
            self.add_node(replica.replica_id)

    def close(self) -> None:
        for node in self.nodes.values():
            for state in node.states.values():
                state.close()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def scratch(self) -> Path:
        if self._scratch is None:
            self._scratch = scratch_folder()
        return self._scratch

    def new_file(self) -> Path:
        """A path that nobody has used."""
        self._files += 1
        return self.scratch() / str(self._files)

    def count(self, what: str) -> None:
        self.counts[what] += 1

    # ---- nodes

    def add_node(self, replica_id: str) -> Node:
        node = Node(self, replica_id)
        self.nodes[replica_id] = self.rules.nodes[replica_id] = self.network.nodes[replica_id] = (
            node
        )
        node.start()
        return node

    def alive(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.life]

    def some_node(self) -> Node | None:
        alive = self.alive()
        return self.rng.choice(alive) if alive else None

    def leader(self, group: int) -> Node | None:
        """The node that leads in the highest term, among those that run."""
        leading = [node for node in self.alive() if node.raft(group).is_leader]
        return max(leading, key=lambda node: node.raft(group).current_term, default=None)

    def process_ended(self, node: Node) -> None:
        self.network.process_ended(node, 0.05 if self.rng.random() < 0.7 else 1.0)
        self.clients.node_ended(node)

    def restart_later(self, node: Node) -> None:
        delay_s = 0.05 if self.healed else self.rng.uniform(0.02, 3.0)
        self.events.after(delay_s, functools.partial(self.restart, node))

    def restart(self, node: Node) -> None:
        if not node.life and not node.wiped:
            node.start()

    def pack_needs(self, data: bytes) -> list[PackNeed]:
        """The packs that a command adds, parsed once."""
        needs = self._needs.get(data)
        if needs is None:
            needs = self._needs[data] = pack_needs(log_pb2.Command.FromString(data))
        return needs

    # ---- reads

    def read(self, node: Node, group: int, timeout_s: float) -> Future[int]:
        """A linearizable read on `node`."""
        assert node.host is not None
        began, life = self.rules.begin_read(group), node.life
        future = node.host.read_index(group, timeout_s)

        def done(answer: Future[int]) -> None:
            if isinstance(answer.exception(), QuorepoError):
                self.count("read refused")
            elif life == node.life:
                self.rules.end_read(node, group, began, answer.result())
                self.events.note(f"read at {node}: {answer.result()}")

        future.add_done_callback(done)
        node.wake()
        return future

    # ---- the end

    def heal(self) -> None:
        """Nothing goes wrong from here on; who is down is started."""
        self.healed = True
        self.network.heal()
        self.network.delay_s = (0.0002, 0.002)
        self.network.patience_s = 0.5
        for node in list(self.nodes.values()):
            node.disk.repair()
            node.disk.sync_s = 0.0
            node.apply_delay_s = 0.002
            node.busy_until = min(node.busy_until, self.events.now)
            if not node.wiped:
                self.restart(node)
                node.go_on()
                node.wake()

    def settle(self) -> None:
        """Safety has held; now things have to go on."""
        try:
            self._settle()
        except Violation as violation:
            if "liveness" not in str(violation):
                raise
            where = " | ".join(self._describe(group) for group in self.groups)
            raise Violation(f"{violation}: {where}") from None

    def _settle(self) -> None:
        """After `heal`: a leader, a write, everybody has it, everybody has an answer."""
        run_until = self.events.run_until
        for group in self.groups:
            ready = functools.partial(self._leads, group)
            run_until(ready, 12.0, f"group {group} has a leader that knows what is committed")
        self.clients.settle()
        unanswered = self.clients.unanswered
        run_until(lambda: not unanswered(), 15.0, "every request has its one answer")
        for group in self.groups:
            index = self._last_write(group)
            caught_up = functools.partial(self._all_have, group, index)
            run_until(caught_up, 15.0, f"all members of group {group} have applied {index}")
            self._last_reads(group)
        self._come_to_rest()
        self.rules.raise_broken()
        self._check_at_rest()

    def _come_to_rest(self) -> None:
        """A write that was refused is asked for again too, until it is applied; whoever fetches its
        pack has as long for it as for every other entry (1795544476306)."""
        unsettled, run_until = self.clients.unsettled, self.events.run_until
        run_until(lambda: not unsettled(), 15.0, "every request that is asked again is applied")
        for group in self.groups:
            index = self.rules.acknowledged[group]
            caught_up = functools.partial(self._all_have, group, index)
            run_until(caught_up, 15.0, f"all members of group {group} have applied {index}")

    def _leads(self, group: int) -> bool:
        leader = self.leader(group)
        if leader is None:
            return False
        raft = leader.raft(group)
        return raft.no_op_index is not None and raft.commit_index >= raft.no_op_index

    def _last_write(self, group: int) -> int:
        """A write that goes through; returns its index."""
        before = self.rules.acknowledged[group]
        end = self.events.now + 10.0
        while self.rules.acknowledged[group] <= before:
            if self.events.now > end:
                raise Violation(f"liveness: group {group} takes no writes within 10 s")
            members = [node for node in self.members(group) if node.life]
            if members:
                node = self.rng.choice(members)
                while self.clients.request(node).group != group:
                    pass
            self.events.run(0.3)
        return self.rules.acknowledged[group]

    def members(self, group: int) -> list[Node]:
        leader = self.leader(group)
        if leader is None:
            return []
        replicas = leader.raft(group).history.current.replicas
        nodes = [self.nodes[replica.replica_id] for replica in replicas]
        return [node for node in nodes if not node.wiped]

    def _all_have(self, group: int, index: int) -> bool:
        members = self.members(group)
        return bool(members) and all(
            node.life and node.states[group].position.applied_index >= index for node in members
        )

    def _describe(self, group: int) -> str:
        """Where every node is, for the message of a violation."""
        told = []
        for node in self.nodes.values():
            if not node.life:
                told.append(f"{node} is {'wiped' if node.wiped else 'down'}")
                continue
            raft = node.raft(group)
            peers = {
                peer.id: (
                    progress.flow.value,
                    raft.match_index.get(peer),
                    raft.next_index.get(peer),
                )
                for peer, progress in raft.progress.items()
            }
            told.append(
                f"{node}: {raft.role()} of term {raft.current_term}, log {raft.log.first_index}.."
                f"{raft.log.last_index}, commit {raft.commit_index}, handed {raft.handed_over}, "
                f"applied {node.states[group].position.applied_index}, connected "
                f"{sorted(peer.id for peer in raft.connected)}, {peers if raft.is_leader else ''}"
            )
        return "; ".join(told)

    def _last_reads(self, group: int) -> None:
        reads = [self.read(node, group, 3.0) for node in self.members(group)]
        self.events.run_until(
            lambda: all(read.done() for read in reads), 5.0, f"reads of group {group} end"
        )
        if any(read.exception() is not None for read in reads):
            raise Violation(f"liveness: a read of group {group} was refused at rest")

    def _check_at_rest(self) -> None:
        self.events.run(2.5)  # every wait has a deadline before that
        self.rules.raise_broken()
        self.clients.check_deadlines()
        self.clients.check_answers()
        for group in self.groups:
            members = self.members(group)
            indexes = {node.states[group].position.applied_index for node in members}
            if len(indexes) != 1:
                raise Violation(f"liveness: members of group {group} rest at {sorted(indexes)}")
            for node in members:
                self.rules.note_digest(node, group, max(indexes), node.states[group].digest())
                self.rules.check_configuration(node, group)
            if max(indexes) < self.rules.acknowledged[group]:
                raise Violation("durability: the state ends before what was acknowledged")

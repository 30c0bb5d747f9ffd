"""One seed, one story: a cluster under random faults, then healed and judged.

Owns: what goes wrong and how often. The rules that must hold are `Cluster`'s. The same seed gives
the same story, in every process: nothing here depends on the order of a set.

    python -m support.raft_schedule 0 1000 --faults membership     (with tests/ on PYTHONPATH)
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import os
import random
import sys
import time
from collections.abc import Sequence

from quorepo.cluster.raft.interface import Outcome, RaftConfig
from quorepo.internal.v1 import log_pb2
from support.raft_cluster import Cluster, Command, Node, Violation, voter

__all__ = ["Story", "run_schedule"]


# With one entry in flight and round trips of 0.2 s a few hundred entries take their time.
_PATIENCE_S = 120.0


@dataclasses.dataclass(slots=True)
class Story:
    """What a schedule did, to see that it did something."""

    seed: int
    acknowledged: int = 0
    verdicts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    reads: int = 0
    terms: int = 0
    crashes: int = 0
    changes: int = 0
    messages: int = 0
    last_index: int = 0


class Schedule:
    """The random events of one seed."""

    def __init__(self, seed: int, *, membership: bool = False) -> None:
        self.rng = random.Random(seed * 2 + membership)
        self.story = Story(seed)
        rng = self.rng
        self.membership = membership
        groups = (0, 1) if rng.random() < 0.25 else (1,)
        self.cluster = Cluster(
            rng.getrandbits(32),
            voters=rng.choice((3, 3, 3, 5, 2, 1) if not membership else (3, 3, 2, 1)),
            groups=groups,
            config=self._config(),
            # One-way delays up to the heartbeat period show livelocks of catching up (S4).
            delay_s=rng.choice(((0.0002, 0.002), (0.0, 0.03), (0.01, 0.12))),
            skew_s=rng.choice((0.0, 500.0)),
        )
        self.cluster.majority_is_founders = not membership
        self.cluster.pack_fetch_fails = rng.choice((0.0, 0.3))
        self.use_packs = rng.random() < 0.5
        self.names = 0
        self.next_replica = 0
        self.actions = self._actions()

    def _config(self) -> RaftConfig:
        rng = self.rng
        return RaftConfig(
            append_batch_bytes_max=rng.choice((1, 60, 300, 262_144)),
            append_inflight_max=rng.choice((1, 2, 8, 64)),
            apply_backlog_max=rng.choice((2, 50, 4096)),
            proposal_queue_max=rng.choice((3, 4096)),
        )

    def _actions(self) -> list[tuple[float, str]]:
        """(weight, name of the method)."""
        rng = self.rng
        actions = [
            (40.0, "propose"),
            (15.0, "burst"),
            (20.0, "read"),
            (rng.choice((0.0, 1.0, 3.0)), "crash"),
            (rng.choice((0.0, 1.0, 2.0)), "crash_in_sync"),
            (rng.choice((0.0, 0.3)), "crash_all"),
            (rng.choice((0.0, 1.0, 3.0)), "partition"),
            (rng.choice((0.0, 1.0, 3.0)), "disconnect"),
            (rng.choice((0.0, 1.0)), "stall_apply"),
            (rng.choice((0.0, 1.0)), "transfer"),
            (rng.choice((0.0, 0.5)), "freeze"),
            (2.0, "heal"),
            (1.0, "pause"),
        ]
        if self.membership:
            actions.append((8.0, "change_members"))
        return actions

    def run(self, seconds: float = 8.0) -> Story:
        cluster, rng = self.cluster, self.rng
        weights = [weight for weight, _ in self.actions]
        names = [name for _, name in self.actions]
        end = cluster.now + seconds
        cluster.run(rng.choice((0.0, 1.0)))
        while cluster.now < end:
            cluster.run(rng.expovariate(1 / 0.02))
            getattr(self, rng.choices(names, weights)[0])()
        self._settle()
        self._tell()
        return self.story

    # ---- what clients do

    def _node(self) -> Node | None:
        alive = self.cluster.alive()
        return self.rng.choice(alive) if alive else None

    def propose(self) -> None:
        node = self._node()
        if node is None:
            return
        rng = self.rng
        self.names += 1
        name = f"c{self.names}" + "x" * rng.choice((0, 0, 0, rng.randint(0, 200)))
        packs: tuple[bytes, ...] = ()
        if self.use_packs and rng.random() < 0.3:
            packs = tuple(f"p{self.names}.{i}".encode() for i in range(rng.choice((1, 1, 2))))
            for holder in self.cluster.nodes.values():
                if holder is node or rng.random() < 0.7:
                    holder.disk.packs.update(packs)
        group = rng.choice(self.cluster.groups)
        timeout_s = rng.choice((0.01, 0.3, 3.0, 3.0))
        self.cluster.propose(node, Command(name, packs), group, timeout_s)

    def burst(self) -> None:
        for _ in range(self.rng.randint(2, 12)):
            self.propose()

    def read(self) -> None:
        node = self._node()
        if node is not None:
            group = self.rng.choice(self.cluster.groups)
            self.cluster.read(node, group, self.rng.choice((0.2, 2.0)))

    # ---- what goes wrong

    def crash(self) -> None:
        node = self.cluster.leader() if self.rng.random() < 0.5 else self._node()
        if node is not None and node.host is not None:
            self._crash(node)

    def _crash(self, node: Node) -> None:
        self.story.crashes += 1
        self.cluster.crash(node, power=self.rng.random() < 0.7)
        self.cluster.after(self.rng.uniform(0.01, 1.5), lambda: self.cluster.restart(node))

    def crash_in_sync(self) -> None:
        node = self.cluster.leader() if self.rng.random() < 0.4 else self._node()
        if node is not None and node.host is not None:
            self.story.crashes += 1
            node.journal.crash_in_sync = True
            self.cluster.after(self.rng.uniform(0.2, 1.5), lambda: self.cluster.restart(node))

    def crash_all(self) -> None:
        for node in self.cluster.alive():
            self._crash(node)

    def partition(self) -> None:
        nodes = list(self.cluster.nodes.values())
        self.rng.shuffle(nodes)
        cut = self.rng.randint(0, len(nodes))
        notice_s = self.rng.choice((0.002, 0.002, 2.0))
        self.cluster.partition(nodes[:cut], nodes[cut:], notice_s=notice_s)

    def disconnect(self) -> None:
        nodes = list(self.cluster.nodes.values())
        if len(nodes) > 1:
            notice_s = self.rng.choice((0.002, 0.002, 0.5))
            self.cluster.disconnect(*self.rng.sample(nodes, 2), notice_s=notice_s)

    def heal(self) -> None:
        self.cluster.heal()

    def pause(self) -> None:
        self.cluster.run(self.rng.uniform(0.2, 1.5))

    def stall_apply(self) -> None:
        node = self._node()
        if node is not None:
            node.apply_stalled = True
            self.cluster.after(self.rng.uniform(0.1, 1.0), lambda: self._go_on(node))

    def _go_on(self, node: Node) -> None:
        node.apply_stalled = False
        for group in self.cluster.groups:
            node.apply(group)

    def freeze(self) -> None:
        """The process stands still (SIGSTOP, a swapping machine): a leader that wakes up."""
        node = self.cluster.leader() or self._node()
        if node is not None:
            node.frozen_until = self.cluster.now + self.rng.uniform(0.3, 2.5)

    def transfer(self) -> None:
        node = self.cluster.leader()
        if node is not None and node.host is not None:
            node.host.transfer_leadership(self.rng.choice(self.cluster.groups))
            self.cluster.poke(node)

    def change_members(self) -> None:
        cluster, rng = self.cluster, self.rng
        group = rng.choice(cluster.groups)
        node = cluster.leader(group) if rng.random() < 0.9 else self._node()
        if node is None:
            return
        self.story.changes += 1
        replicas = list(node.group(group).history.current.replicas)
        learners = [r for r in replicas if not r.votes]
        kind = rng.choice(("add", "promote", "promote", "remove", "demote"))
        if kind == "add" and len(replicas) < 6:
            self.next_replica += 1
            replica_id = f"m{self.next_replica}@1"
            cluster.add_node(replica_id)
            self._change(node, [*replicas, voter(replica_id, votes=False)], group)
        elif kind == "promote" and learners:
            chosen = rng.choice(learners).replica_id
            self._change(
                node, [voter(chosen) if r.replica_id == chosen else r for r in replicas], group
            )
        elif kind == "remove" and len(replicas) > 2:
            gone = rng.choice(replicas)
            self._change(node, [r for r in replicas if r is not gone], group)
        elif kind == "demote" and len(replicas) - len(learners) > 2:
            chosen = rng.choice(replicas).replica_id
            demoted = voter(chosen, votes=False)
            self._change(node, [demoted if r.replica_id == chosen else r for r in replicas], group)

    def _change(self, node: Node, replicas: Sequence[log_pb2.Replica], group: int) -> None:
        self.cluster.change(node, replicas, group)

    # ---- the end

    def _settle(self) -> None:
        """Everything works again: whoever is a member catches up, and a last write goes through."""
        cluster = self.cluster
        for node in cluster.nodes.values():
            node.journal.crash_in_sync = False
            node.frozen_until = 0.0
            cluster.restart(node)
        cluster.heal()
        cluster.pack_fetch_fails = 0.0
        cluster.run(3.0)
        for node in cluster.nodes.values():
            cluster.restart(node)  # a crash in a sync may have come late
            self._go_on(node)
        cluster.heal()
        for group in cluster.groups:
            self._wait_until_all_have(group, self._last_write(group))
        cluster.run(4.0)  # every wait has a deadline before that
        for proposed in cluster.proposed:
            if proposed.verdict is None and proposed.host is proposed.at.host:
                raise Violation(f"{proposed} never got a verdict")
        for group in cluster.groups:
            cluster.check_at_rest(group, self._members(group))

    def _last_write(self, group: int) -> int:
        """An index that all members have to reach."""
        cluster = self.cluster
        for attempt in range(40):
            node = cluster.wait_for_leader(group, _PATIENCE_S)
            done = cluster.apply(node, f"last {group} {attempt}", group, 2.0)
            if done.outcome is Outcome.APPLIED:
                return done.index
            cluster.run(0.5)
        raise Violation(f"group {group} takes no writes after it was healed: {done}")

    def _members(self, group: int) -> list[Node]:
        leader = self.cluster.leader(group)
        if leader is None:
            raise Violation(f"group {group} has no leader")
        replicas = leader.group(group).history.current.replicas
        return [self.cluster.nodes[replica.replica_id] for replica in replicas]

    def _wait_until_all_have(self, group: int, index: int) -> None:
        members = self._members(group)
        self.cluster.run_until(
            lambda: all(len(node.disk.state[group]) >= index for node in members), _PATIENCE_S
        )

    def _tell(self) -> None:
        story, cluster = self.story, self.cluster
        story.verdicts.update(cluster.verdicts())
        story.acknowledged = story.verdicts["APPLIED "]
        story.reads = cluster.reads_done
        story.terms = len(cluster.leaders)
        story.messages = cluster.messages
        story.last_index = max(index for _, index in cluster.committed)


def run_schedule(seed: int, *, membership: bool = False, seconds: float = 8.0) -> Story:
    """Runs one seed. Raises Violation, or whatever the engine raised, when a promise was broken."""
    return Schedule(seed, membership=membership).run(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("stop", type=int)
    parser.add_argument("--membership", action="store_true")
    parser.add_argument("--seconds", type=float, default=8.0, help="virtual, of faults")
    arguments = parser.parse_args()
    started = time.monotonic()
    total: collections.Counter[str] = collections.Counter()
    failed = 0
    for seed in range(arguments.first, arguments.stop):
        try:
            story = run_schedule(seed, membership=arguments.membership, seconds=arguments.seconds)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            failed += 1
            print(f"seed {seed}: {type(error).__name__}: {str(error)[:300]}")
            continue
        total.update(story.verdicts)
        total.update(
            schedules=1,
            reads=story.reads,
            terms=story.terms,
            crashes=story.crashes,
            changes=story.changes,
            messages=story.messages,
        )
    print(
        f"{failed} failed in {time.monotonic() - started:.1f} s (PYTHONHASHSEED "
        f"{os.environ.get('PYTHONHASHSEED', 'random')})"
    )
    for key, count in sorted(total.items()):
        print(f"{count:10} {key}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

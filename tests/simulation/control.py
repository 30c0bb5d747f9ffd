"""The control: stock pysyncobj 0.3.17 under schedules of the same shape, and what it loses.

`python -m simulation.control --count 200` prints how many schedules showed which violation. Stock
means: its own replication, elections, journal file and pickles; a virtual clock and a virtual
network of ordered connections are all that is put under it. Faults are fewer and kinder than the
product's schedules have: kills (the page cache stays), broken connections, partitions of both
directions, slow links. With `--power`, a power cut besides: stock never syncs, so its journal may
be as it was up to 5 s before. If this finds nothing, the simulator is worth nothing.
"""

from __future__ import annotations

import argparse
import collections
import functools
import logging
import os
import pickle
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pysyncobj.syncobj as stock
from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from simulation.events import Events
from simulation.state import scratch_folder

__all__ = ["main", "run_control"]

SAFETY_S = 20.0
PROPOSALS = 200
_TICK_S = 0.01


class _Wire(Transport):  # type: ignore[misc]
    """Connections in memory: ordered, lost whole when they break, told to both sides."""

    cluster: ClassVar[_Cluster]

    def __init__(self, owner: SyncObj, me: Node, others: list[Node]) -> None:
        super().__init__(owner, me, others)
        self.id = me.id
        self.peers = {node.id: node for node in others}
        self.up: dict[str, int] = {}  # by peer: number of the connection

    def send(self, node: Node, message: Any) -> bool:
        if node.id not in self.up:
            return False
        _Wire.cluster.carry(self.id, node.id, self.up[node.id], pickle.dumps(message))
        return True

    def receive(self, sender: str, data: bytes) -> None:
        self._onMessageReceived(self.peers[sender], pickle.loads(data))

    def connected(self, peer: str, number: int) -> None:
        self.up[peer] = number
        self._onNodeConnected(self.peers[peer])

    def disconnected(self, peer: str) -> None:
        if self.up.pop(peer, None) is not None:
            self._onNodeDisconnected(self.peers[peer])

    def destroy(self) -> None:
        pass


class _List(SyncObj):  # type: ignore[misc]
    """The replicated state: a list of what was applied."""

    def __init__(self, me: str, others: list[str], conf: SyncObjConf) -> None:
        super().__init__(
            Node(me), [Node(o) for o in others], conf, nodeClass=Node, transportClass=_Wire
        )
        self.items: list[str] = []

    @replicated  # type: ignore[untyped-decorator]
    def append(self, item: str) -> int:
        self.items.append(item)
        return len(self.items)


class _Cluster:
    """Three stock nodes."""

    def __init__(self, seed: int, folder: Path, *, power: bool) -> None:
        self.events = Events(seed)
        self.rng = self.events.rng
        random.seed(seed)
        vars(stock)["monotonicTime"] = self._clock
        self.folder = folder
        self.power = power
        self.names = ["n0", "n1", "n2"]
        self.nodes: dict[str, _List] = {}
        self.blocked: set[frozenset[str]] = set()
        self.connections = 0
        self.last_at: dict[tuple[str, str], float] = {}
        self.delay_s = self.rng.choice(((0.0002, 0.002), (0.0, 0.03)))
        self.asked = 0
        self.acknowledged: dict[str, int] = {}
        self.refused: set[str] = set()
        self.leaders: dict[int, str] = {}
        self.found: collections.Counter[str] = collections.Counter()
        self.older: dict[str, bytes] = {}
        _Wire.cluster = self
        for name in self.names:
            self.start(name)

    def _clock(self) -> float:
        self.events.now += 1e-6  # it measures itself with this
        return self.events.now

    def start(self, name: str) -> None:
        if name in self.nodes:
            return
        conf = SyncObjConf(
            autoTick=False,
            journalFile=str(self.folder / f"{name}.journal"),
            useFork=False,
            raftMinTimeout=0.5,
            raftMaxTimeout=1.0,
            leaderFallbackTimeout=1.5,
            appendEntriesBatchSizeBytes=self.rng.choice((300, 65536)),
            logCompactionMinEntries=10**9,
            logCompactionMinTime=10**9,
        )
        self.nodes[name] = _List(name, [other for other in self.names if other != name], conf)
        self.events.after(_TICK_S, functools.partial(self.tick, name, self.nodes[name]))

    def wire(self, name: str) -> _Wire:
        return self.nodes[name]._SyncObj__transport  # type: ignore[no-any-return]

    def tick(self, name: str, node: _List) -> None:
        if self.nodes.get(name) is not node:
            return
        try:
            node.doTick(0.0)
        except Exception as error:
            self.found[f"tick raised {type(error).__name__}"] += 1
        if node._SyncObj__raftState == 2:
            term = node._SyncObj__raftCurrentTerm
            if self.leaders.setdefault(term, name) != name:
                self.found["two leaders in one term"] += 1
        for other in self.names:
            self.connect(name, other)
        self.events.after(
            self.rng.uniform(0.5, 1.5) * _TICK_S, functools.partial(self.tick, name, node)
        )

    def connect(self, one: str, other: str) -> None:
        if one == other or one not in self.nodes or other not in self.nodes:
            return
        if frozenset((one, other)) in self.blocked or other in self.wire(one).up:
            return
        self.connections += 1
        self.wire(one).connected(other, self.connections)
        self.wire(other).connected(one, self.connections)

    def disconnect(self, one: str, other: str) -> None:
        for here, there in ((one, other), (other, one)):
            if here in self.nodes:
                self.wire(here).disconnected(there)

    def carry(self, sender: str, receiver: str, number: int, data: bytes) -> None:
        at = max(
            self.events.now + self.rng.uniform(*self.delay_s),
            self.last_at.get((sender, receiver), 0),
        )
        self.last_at[sender, receiver] = at
        arrive = functools.partial(self.arrive, sender, receiver, number, data)
        self.events.after(at - self.events.now, arrive)

    def arrive(self, sender: str, receiver: str, number: int, data: bytes) -> None:
        if receiver not in self.nodes or self.wire(receiver).up.get(sender) != number:
            return
        try:
            self.wire(receiver).receive(sender, data)
        except Exception as error:
            self.found[f"message raised {type(error).__name__}"] += 1

    # ---- clients

    def ask(self) -> None:
        if not self.nodes:
            return
        self.asked += 1
        item = f"c{self.asked}" + "x" * self.rng.choice((0, 0, 200, 3000))
        self.nodes[self.rng.choice(sorted(self.nodes))].append(
            item, callback=functools.partial(self.told, item)
        )

    def told(self, item: str, result: Any, reason: int) -> None:
        if reason == FAIL_REASON.SUCCESS:
            self.acknowledged[item] = result
        elif reason in (
            FAIL_REASON.QUEUE_FULL,
            FAIL_REASON.MISSING_LEADER,
            FAIL_REASON.NOT_LEADER,
            FAIL_REASON.REQUEST_DENIED,
            FAIL_REASON.DISCARDED,
        ):
            self.refused.add(item)

    # ---- faults

    def kill(self, name: str, *, power: bool = False) -> None:
        node = self.nodes.get(name)
        if node is None:
            return
        for other in self.names:
            if other != name:
                self.disconnect(name, other)
        del self.nodes[name]
        node._SyncObj__raftLog._destroy()
        if power and name in self.older:
            (self.folder / f"{name}.journal").write_bytes(self.older[name])
        self.events.after(self.rng.uniform(0.05, 3.0), functools.partial(self.start, name))

    def remember(self) -> None:
        """What the kernel may have written by itself."""
        for name in self.names:
            path = self.folder / f"{name}.journal"
            if path.exists():
                self.older[name] = path.read_bytes()

    def fault(self) -> None:
        name = self.rng.choice(self.names)
        kinds = ["kill", "kill", "kill all", "drop", "isolate", "slow"]
        match self.rng.choice([*kinds, "power", "power all"] if self.power else kinds):
            case "kill":
                self.kill(name)
            case "kill all":
                for other in self.names:
                    self.kill(other)
            case "power":
                self.kill(name, power=True)
            case "power all":
                for other in self.names:
                    self.kill(other, power=True)
            case "drop":
                self.disconnect(*self.rng.sample(self.names, 2))
            case "isolate":
                for other in self.names:
                    if other != name:
                        self.blocked.add(frozenset((name, other)))
                        self.disconnect(name, other)
                self.events.after(self.rng.uniform(0.3, 4.0), self.blocked.clear)
            case "slow":
                self.delay_s = self.rng.choice(((0.01, 0.1), (0.0, 0.3)))

    def judge(self) -> None:
        """After healing: what was told must be true."""
        states = {name: node.items for name, node in self.nodes.items()}
        longest = max(states.values(), key=len)
        times = collections.Counter(longest)
        if any(state != longest for state in states.values()):
            self.found["states differ at rest"] += 1
        if any(item not in times for item in self.acknowledged):
            self.found["acknowledged writes lost"] += 1
        if any(times[item] > 1 for item in times):
            self.found["applied twice"] += 1
        if any(item in times for item in self.refused):
            self.found["refused and applied"] += 1
        before = len(self.acknowledged)
        self.ask()
        self.ask()
        self.events.run(5.0)
        if len(self.acknowledged) == before:
            self.found["no write goes through at rest"] += 1


def run_control(seed: int, *, power: bool = False) -> collections.Counter[str]:
    """One schedule of stock pysyncobj; what it broke."""
    folder = scratch_folder()
    try:
        cluster = _Cluster(seed, folder, power=power)
        events, rng = cluster.events, cluster.rng
        for _ in range(rng.randint(3, 10)):
            events.after(rng.uniform(1.0, SAFETY_S), cluster.fault)
        for _ in range(PROPOSALS):
            events.after(rng.uniform(0.8, SAFETY_S), cluster.ask)
        for second in range(0, int(SAFETY_S), 5):
            events.after(second, cluster.remember)
        events.run(SAFETY_S)
        cluster.blocked.clear()
        cluster.delay_s = (0.0002, 0.002)
        events.run(12.0)
        cluster.judge()
        for name in list(cluster.nodes):
            cluster.nodes[name]._SyncObj__raftLog._destroy()
        return cluster.found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--power", action="store_true", help="power cuts besides")
    arguments = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(
            sys.executable,
            [sys.executable, "-m", "simulation.control", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": "0"},
        )
    logging.disable(logging.CRITICAL)
    started = time.monotonic()
    broken = 0
    kinds: collections.Counter[str] = collections.Counter()
    for seed in range(arguments.first, arguments.first + arguments.count):
        found = run_control(seed, power=arguments.power)
        broken += bool(found)
        kinds.update(found.keys())
    print(
        f"stock pysyncobj: {broken} of {arguments.count} schedules with a violation, "
        f"{time.monotonic() - started:.0f} s"
    )
    for kind, count in kinds.most_common():
        print(f"{count:6} schedules  {kind}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

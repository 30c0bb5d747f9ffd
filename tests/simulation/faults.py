"""What goes wrong in a schedule. One method per kind; the names are in setting.FAULTS.

Owns: doing it, and undoing what does not end by itself. Draws its targets from the seed. Must not
check anything.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from simulation.node import Node

if TYPE_CHECKING:
    from simulation.cluster import Cluster

__all__ = ["Faults"]


class Faults:
    """Faults on one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.rng = cluster.rng
        self.done = 0

    def strike(self, name: str) -> None:
        """One fault of that kind, if it can be had now."""
        if self.cluster.healed:
            return
        if getattr(self, name)() is not False:
            self.done += 1
            self.cluster.count(f"fault {name}")
            self.cluster.events.note(f"fault {name}")

    def _victim(self) -> Node | None:
        """The leader more often than not; or whoever pulls a snapshot, or its source."""
        cluster = self.cluster
        catching_up = [
            node
            for node in cluster.alive()
            if node.snapshots is not None and node.snapshots.pulling_from
        ]
        if catching_up and self.rng.random() < 0.5:
            node = self.rng.choice(catching_up)
            assert node.snapshots is not None
            source = self.rng.choice(list(node.snapshots.pulling_from.values()))
            return source if source.life and self.rng.random() < 0.3 else node
        leader = cluster.leader(self.rng.choice(cluster.groups))
        return leader if leader is not None and self.rng.random() < 0.5 else cluster.some_node()

    def _after(self, low_s: float, high_s: float, action: functools.partial[None]) -> None:
        self.cluster.events.after(self.rng.uniform(low_s, high_s), action)

    # ---- processes and power

    def _end(self, node: Node, *, power: bool) -> None:
        node.end(power=power)
        self.cluster.restart_later(node)

    def kill(self) -> bool:
        node = self._victim()
        if node is None:
            return False
        self._end(node, power=False)
        return True

    def lose_power(self) -> bool:
        node = self._victim()
        if node is None:
            return False
        self._end(node, power=True)
        return True

    def lose_power_everywhere(self) -> None:
        for node in self.cluster.alive():
            self._end(node, power=True)

    def kill_everywhere(self) -> None:
        for node in self.cluster.alive():
            self._end(node, power=False)

    def crash_at_disk_operation(self) -> bool:
        node = self._victim()
        if node is None:
            return False
        node.disk.crash_soon(self.rng.choice((1, 2, 3, 5, 20)), power=self.rng.random() < 0.7)
        return True

    def stop_process(self) -> bool:
        """SIGSTOP, a swapping machine, a garbage collection: it goes on, believing it is now."""
        node = self._victim()
        if node is None:
            return False
        node.busy_until = self.cluster.events.now + self.rng.uniform(0.3, 4.0)
        return True

    # ---- disks

    def fail_sync(self) -> bool:
        node = self._victim()
        if node is None:
            return False
        node.disk.fail_syncs = True
        return True

    def fill_disk(self) -> bool:
        node = self._victim()
        if node is None:
            return False
        node.disk.space_bytes = self.rng.randint(0, 2000)
        return True

    def slow_disk(self) -> bool:
        node = self._victim()
        if node is None:
            return False
        node.disk.sync_s = self.rng.choice((0.01, 0.05, 0.3))
        self._after(0.5, 5.0, functools.partial(setattr, node.disk, "sync_s", 0.0))
        return True

    def stall_apply(self) -> bool:
        node = self._victim()
        if node is None:
            return False
        node.apply_stalled = True
        self._after(0.2, 2.0, functools.partial(node.go_on))
        return True

    def step_clock(self) -> bool:
        node = self._victim()
        if node is None:
            return False
        limit_ms = 18_000_000 if self.cluster.setting.large_clock_steps else 3_300_000
        node.clock_step_ms = self.rng.choice((-limit_ms, -5000, 5000, limit_ms, 0))
        return True

    # ---- the network

    def _heal_later(self) -> None:
        self._after(0.3, 4.0, functools.partial(self.cluster.network.heal))

    def partition(self) -> bool:
        nodes = sorted(self.cluster.nodes)
        if len(nodes) < 2:
            return False
        self.rng.shuffle(nodes)
        cut = self.rng.randint(1, len(nodes) - 1)
        for one in nodes[:cut]:
            for other in nodes[cut:]:
                self.cluster.network.block((one, other))
                self.cluster.network.block((other, one))
        self._heal_later()
        return True

    def isolate_leader(self) -> bool:
        leader = self.cluster.leader(self.rng.choice(self.cluster.groups))
        if leader is None:
            return False
        mode = self.rng.choice(("both", "both", "hears", "speaks"))
        # What it is asked now is answered after the partition, when others may have written.
        group = self.cluster.groups[-1]
        self.cluster.read(leader, group, 3.0)
        for _ in range(self.rng.randint(0, 6)):
            later = functools.partial(self._read_and_write, leader, group)
            self._after(0.2, 3.0, later)
        self._after(0.0, 0.004, functools.partial(self._cut_off, leader, mode))
        return True

    def _read_and_write(self, leader: Node, group: int) -> None:
        if self.cluster.healed:
            return
        if leader.life:
            self.cluster.read(leader, group, 3.0)
        other = self.cluster.some_node()
        if other is not None:
            self.cluster.clients.request(other)

    def _cut_off(self, leader: Node, mode: str) -> None:
        for other in self.cluster.nodes:
            if other != leader.replica_id:
                if mode != "hears":
                    self.cluster.network.block((other, leader.replica_id))
                if mode != "speaks":
                    self.cluster.network.block((leader.replica_id, other))
        self._heal_later()

    def block_one_way(self) -> bool:
        if len(self.cluster.nodes) < 2:
            return False
        one, other = self.rng.sample(sorted(self.cluster.nodes), 2)
        self.cluster.network.block((one, other))
        self._heal_later()
        return True

    def drop_stream(self) -> bool:
        if len(self.cluster.nodes) < 2:
            return self.kill()
        for _ in range(self.rng.choice((1, 1, 3))):
            one, other = self.rng.sample(sorted(self.cluster.nodes), 2)
            self.cluster.network.drop((one, other), self.rng.choice((0.002, 0.3, 2.0)))
        return True

    def supersede_stream(self) -> bool:
        if len(self.cluster.nodes) < 2:
            return False
        for _ in range(self.rng.choice((1, 3, 10))):
            one, other = self.rng.sample(sorted(self.cluster.nodes), 2)
            self.cluster.network.supersede((one, other))
        return True

    def slow_network(self) -> None:
        heartbeat_s = self.cluster.setting.config.heartbeat_interval_s
        self.cluster.network.delay_s = self.rng.choice(
            ((0.0, 0.3 * heartbeat_s), (0.1 * heartbeat_s, heartbeat_s), (0.0, 6 * heartbeat_s))
        )
        self._after(1.0, 5.0, functools.partial(self._usual_network))

    def _usual_network(self) -> None:
        if not self.cluster.healed:
            self.cluster.network.delay_s = self.cluster.setting.delay_s

    def transfer_leadership(self) -> bool:
        group = self.rng.choice(self.cluster.groups)
        leader = self.cluster.leader(group)
        if leader is None or leader.host is None:
            return False
        leader.host.transfer_leadership(group)
        leader.wake()
        return True

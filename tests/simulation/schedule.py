"""One seed, one schedule: at least 20 virtual seconds, 200 proposals and 3 faults, then judgement.

Owns: when what happens. The same seed gives the same schedule, in every process that has
PYTHONHASHSEED pinned (pysyncobj iterates over sets).
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import random
import traceback

from simulation.cluster import Cluster
from simulation.events import Events, Violation
from simulation.faults import Faults
from simulation.operator import Operator
from simulation.setting import Setting

__all__ = ["Story", "run_schedule"]

SAFETY_S = 20.0
PROPOSALS_MIN = 200
FAULTS_MIN = 3


@dataclasses.dataclass(slots=True)
class Story:
    """What a schedule did."""

    seed: int
    violation: str = ""
    virtual_s: float = 0.0
    proposals: int = 0
    faults: int = 0
    acknowledged: int = 0
    reads: int = 0
    terms: int = 0
    frames: int = 0
    trace_hash: int = 0
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    trace: list[str] = dataclasses.field(default_factory=list)


def run_schedule(seed: int, *, keep_trace: bool = False) -> Story:
    """Runs one seed; a broken promise is in the story. Anything else that is raised is a bug of
    the product or the simulator, and counts as broken too."""
    events = Events(seed, keep_trace=keep_trace)
    setting = Setting.draw(events.rng)
    story = Story(seed)
    cluster = None
    try:
        cluster = Cluster(events, setting)
        _run(cluster, story)
    except Exception as error:  # whatever it is, the seed shows it
        story.violation = f"{type(error).__name__}: {error}"
        events.note(story.violation)
        if not isinstance(error, Violation):
            story.trace.append(traceback.format_exc())
    finally:
        if cluster is not None:
            _tell(cluster, story)
            cluster.close()
    return story


def _run(cluster: Cluster, story: Story) -> None:
    events, rng = cluster.events, cluster.rng
    faults = Faults(cluster)
    _plan(cluster, faults, Operator(cluster))
    events.run(SAFETY_S)
    while cluster.clients.proposals < PROPOSALS_MIN or faults.done < FAULTS_MIN:
        faults.strike(rng.choice(("kill", "lose_power", "drop_stream")))
        _burst(cluster)
        events.run(0.5)
    story.faults = faults.done
    cluster.heal()
    cluster.settle()


def _plan(cluster: Cluster, faults: Faults, operator: Operator) -> None:
    """Puts all faults, requests, reads and changes of the safety phase into the queue."""
    events, rng, setting = cluster.events, cluster.rng, cluster.setting
    names, weights = list(setting.fault_weights), list(setting.fault_weights.values())
    for name in rng.choices(names, weights, k=setting.faults):
        events.after(rng.uniform(0.5, SAFETY_S - 0.5), functools.partial(faults.strike, name))
    left = setting.requests
    while left > 0:
        size = min(left, rng.randint(1, setting.burst_max))
        left -= size
        at = rng.uniform(0.8, SAFETY_S - 0.2)
        events.after(at, functools.partial(_burst, cluster, size))
    for _ in range(rng.randint(20, 60)):
        events.after(rng.uniform(0.5, SAFETY_S), lambda: _read(cluster))
    if setting.membership:
        for _ in range(rng.randint(8, 20)):
            events.after(rng.uniform(1.0, SAFETY_S), operator.act)
    if setting.compaction:
        for _ in range(rng.choice((20, 60, 200))):
            events.after(rng.uniform(1.0, SAFETY_S), lambda: _compact(cluster))
        if setting.compacting_nodes == 1:  # so that a log overtakes a snapshot on its way
            for _ in range(rng.randint(0, 12)):
                strike = functools.partial(faults.strike, "transfer_leadership")
                events.after(rng.uniform(1.0, SAFETY_S), strike)


def _burst(cluster: Cluster, size: int = 20) -> None:
    """Requests that arrive together, on one node or on all."""
    if cluster.healed:
        return  # whoever waited for a node to run has given up
    one = cluster.some_node() if cluster.rng.random() < 0.5 else None
    for _ in range(size):
        node = one or cluster.some_node()
        if node is None or not node.life:
            cluster.events.after(0.3, lambda: _burst(cluster, 1))
        else:
            cluster.clients.request(node)


def _read(cluster: Cluster) -> None:
    node = cluster.some_node()
    if node is not None:
        cluster.read(node, cluster.rng.choice(cluster.groups), cluster.rng.choice((0.3, 2.0)))


def _compact(cluster: Cluster) -> None:
    nodes = list(cluster.nodes.values())[: cluster.setting.compacting_nodes]
    node = cluster.rng.choice(nodes)
    if node.life:
        node.compact(cluster.rng.choice(cluster.groups))


def _tell(cluster: Cluster, story: Story) -> None:
    events = cluster.events
    story.virtual_s = events.now - 1000.0
    story.proposals = cluster.clients.proposals
    story.acknowledged = cluster.counts["APPLIED"]
    story.reads = cluster.rules.reads
    story.terms = len(cluster.rules.leaders)
    story.frames = cluster.network.delivered
    story.trace_hash = events.trace_hash
    story.counts = dict(sorted(collections.Counter(cluster.counts).items()))
    story.trace.extend(events.trace or ())


def draw_setting(seed: int) -> Setting:
    """The setting of a seed, to look at."""
    return Setting.draw(random.Random(seed))

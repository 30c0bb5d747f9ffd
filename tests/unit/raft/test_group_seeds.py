"""Seeded stories: crashes, power cuts, partitions, frozen processes, member changes; nothing lost.

Every seed that once found a fault stays here for ever, with the fault it found.
"""

from __future__ import annotations

import pytest
from support.raft_schedule import run_schedule


@pytest.mark.parametrize("seed", range(24))
def test_acknowledged_commands_survive_faults(seed: int) -> None:
    story = run_schedule(seed, seconds=5.0)
    assert story.last_index > 2


@pytest.mark.parametrize("seed", range(16))
def test_acknowledged_commands_survive_faults_and_member_changes(seed: int) -> None:
    story = run_schedule(seed, membership=True, seconds=5.0)
    assert story.changes > 0


def test_a_seed_tells_the_same_story_twice() -> None:
    assert run_schedule(7, seconds=3.0) == run_schedule(7, seconds=3.0)


@pytest.mark.slow
@pytest.mark.parametrize("membership", [False, True])
@pytest.mark.parametrize("block", range(10))
def test_acknowledged_commands_survive_many_stories(block: int, membership: bool) -> None:
    for seed in range(1000 + 50 * block, 1050 + 50 * block):
        run_schedule(seed, membership=membership)

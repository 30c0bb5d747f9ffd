"""All watchers of a node wait for one look at what it has applied."""

from __future__ import annotations

import asyncio

import pytest

from quorepo.rpc.applied_feed import AppliedFeed
from quorepo.storage.errors import Unavailable


class State:
    """An applied index that is read only when the test lets it be."""

    def __init__(self) -> None:
        self.index = 5
        self.reads = 0
        self.stopping = False
        self.broken = False

    async def read(self) -> int:
        self.reads += 1
        if self.broken:
            raise Unavailable("no state")
        return self.index

    def feed(self) -> AppliedFeed:
        return AppliedFeed(self.read, lambda: self.stopping)


async def test_one_read_wakes_all_who_wait() -> None:
    state = State()
    feed = state.feed()
    with feed.watching() as one, feed.watching() as other:
        await feed.wait(4, 60)
        waiting = [asyncio.create_task(feed.wait(5, 60)) for _ in range(20)]
        feed.told(one, 5)
        feed.told(other, 2)
        assert (feed.watchers, feed.lag_entries()) == (2, 3)
        reads = state.reads
        state.index = 6
        await asyncio.gather(*waiting)
        assert state.reads == reads + 1
        assert feed.lag_entries() == 4
    assert (feed.watchers, feed.lag_entries()) == (0, 0)
    # Nobody watches, and nothing is read.
    await asyncio.sleep(0)
    assert [task.get_name() for task in asyncio.all_tasks() if "feed" in task.get_name()] == []


async def test_a_wait_ends_with_its_time_and_when_the_node_stops() -> None:
    state = State()
    feed = state.feed()
    with feed.watching():
        await feed.wait(5, 0.001)
        waiting = asyncio.create_task(feed.wait(5, 60))
        state.stopping = True
        await waiting


async def test_a_state_that_cannot_be_read_is_told_and_forgotten() -> None:
    state = State()
    feed = state.feed()
    with feed.watching():
        await feed.wait(4, 60)
        state.broken = True
        with pytest.raises(Unavailable):
            await feed.wait(5, 60)
        state.broken = False
        waiting = asyncio.create_task(_until_no_failure(feed))
        state.index = 6
        await waiting


async def _until_no_failure(feed: AppliedFeed) -> None:
    while True:
        try:
            await feed.wait(5, 60)
            return
        except Unavailable:
            await asyncio.sleep(0)

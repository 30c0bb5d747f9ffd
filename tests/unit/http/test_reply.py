"""Signs of life while an answer is being made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from quorepo.rpc.reply import Bytes, Liveness
from quorepo.rpc.uploads import Incoming
from quorepo.storage.errors import LimitExceeded, Unavailable

KEEPALIVE = b"0005\x01"


class Recorder:
    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.arrived = asyncio.Event()
        self.gone = False

    async def write(self, data: Bytes) -> None:
        if self.gone:
            raise ConnectionResetError("gone")
        self.written.append(bytes(data))
        self.arrived.set()

    async def write_last(self, data: Bytes) -> None:
        await self.write(data)

    def close_after(self) -> None: ...

    def abort(self) -> None: ...


async def test_a_silent_answer_sends_keepalives() -> None:
    reply = Recorder()
    async with Liveness(reply, KEEPALIVE, interval_s=0.01):
        await asyncio.wait_for(reply.arrived.wait(), 5)
    assert reply.written[0] == KEEPALIVE


async def test_work_that_is_over_at_once_sends_nothing() -> None:
    reply = Recorder()
    async with Liveness(reply, KEEPALIVE) as alive:
        alive.say(b"progress")
    assert reply.written == []


async def test_progress_goes_out_in_order_and_bounded() -> None:
    reply = Recorder()
    async with Liveness(reply, KEEPALIVE, interval_s=0.01) as alive:
        for number in range(100):
            alive.say(b"%d " % number)
        await asyncio.wait_for(reply.arrived.wait(), 5)
    assert reply.written[0].split() == [b"%d" % n for n in range(84, 100)]


async def test_a_client_without_a_band_hears_nothing() -> None:
    reply = Recorder()
    async with Liveness(reply, b"", interval_s=0.001) as alive:
        alive.say(b"progress")
        await asyncio.sleep(0.02)
    assert reply.written == []


async def test_a_client_that_is_gone_does_not_break_the_work() -> None:
    reply = Recorder()
    reply.gone = True
    async with Liveness(reply, KEEPALIVE, interval_s=0.001):
        await asyncio.sleep(0.02)


async def test_cancelling_the_work_ends_the_keepalives() -> None:
    reply = Recorder()

    async def work() -> None:
        async with Liveness(reply, KEEPALIVE, interval_s=0.001):
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.wait_for(reply.arrived.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    count = len(reply.written)
    await asyncio.sleep(0.02)
    assert len(reply.written) == count


async def _pieces(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_a_body_is_read_to_its_limit() -> None:
    assert await Incoming(_pieces(b"ab", b"cd")).read_all(4, "limits.x") == b"abcd"
    with pytest.raises(LimitExceeded) as caught:
        await Incoming(_pieces(b"ab", b"cde")).read_all(4, "limits.x")
    assert caught.value.limit == "limits.x"


async def test_a_body_that_stops_coming_is_given_up() -> None:
    async def stuck() -> AsyncIterator[bytes]:
        yield b"start"
        await asyncio.Event().wait()

    incoming = Incoming(stuck(), idle_timeout_s=0.02)
    assert await incoming.read() == b"start"
    with pytest.raises(Unavailable, match="nothing arrived"):
        await incoming.read()


async def test_draining_is_bounded() -> None:
    assert await Incoming(_pieces(b"abc", b"def")).drain(6)
    assert not await Incoming(_pieces(b"abc", b"def")).drain(5)

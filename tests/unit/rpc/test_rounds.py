"""Questions shared between requests: nobody is answered by a question older than itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from quorepo.rpc.rounds import Rounds
from quorepo.storage.errors import Unavailable


class Questions:
    """What was asked, each answered when the test says so."""

    def __init__(self) -> None:
        self.open: list[asyncio.Future[None]] = []
        self.asked = 0

    async def ask(self, items: Sequence[int], _timeout_s: float) -> Sequence[int]:
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.asked += 1
        self.open.append(answer)
        await answer
        return [-item for item in items]


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_comes_while_a_question_is_open_waits_for_the_next_one() -> None:
    questions = Questions()
    rounds = Rounds(questions.ask, under_way_max=1)
    first = asyncio.create_task(rounds.ask(1, 30))
    await _settle()
    later = [asyncio.create_task(rounds.ask(number, 30)) for number in range(10)]
    await _settle()
    assert questions.asked == 1
    questions.open.pop().set_result(None)
    await first
    await _settle()
    assert not any(task.done() for task in later)
    assert questions.asked == 2
    questions.open.pop().set_result(None)
    assert await asyncio.gather(*later) == [-number for number in range(10)]
    assert questions.asked == 2


async def test_a_failed_question_fails_those_who_shared_it_and_no_others() -> None:
    questions = Questions()
    rounds = Rounds(questions.ask, under_way_max=1)
    first = asyncio.create_task(rounds.ask(1, 30))
    await _settle()
    second = asyncio.create_task(rounds.ask(1, 30))
    await _settle()
    questions.open.pop().set_exception(Unavailable("no leader"))
    with pytest.raises(Unavailable, match="no leader"):
        await first
    await _settle()
    questions.open.pop().set_result(None)
    await second


async def test_who_gives_up_holds_up_nobody() -> None:
    questions = Questions()
    rounds = Rounds(questions.ask, under_way_max=1)
    with pytest.raises(TimeoutError):
        await rounds.ask(1, 0.01)
    gone = asyncio.create_task(rounds.ask(1, 30))
    patient = asyncio.create_task(rounds.ask(1, 30))
    await _settle()
    gone.cancel()
    questions.open.pop().set_result(None)  # nobody waits for this one any more
    await _settle()
    questions.open.pop().set_result(None)
    await patient
    assert gone.cancelled()

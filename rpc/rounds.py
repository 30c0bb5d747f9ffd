"""One question for all who have the same to ask at the same time.

An answer is worth something only to those who came before the question was asked: a read index
tells what was acknowledged until then. So whoever comes while one is under way waits for the next,
and that one is shared by all who came meanwhile: under load an answer costs a share of a call,
alone it costs what it did. Must not know what is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

__all__ = ["Rounds"]

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


class Rounds(Generic[_Item, _Answer]):
    """Rounds of one question; lives in one event loop."""

    def __init__(
        self,
        ask: Callable[[Sequence[_Item], float], Awaitable[Sequence[_Answer]]],
        under_way_max: int = 2,
    ) -> None:
        """`ask(items, timeout_s)` asks for all of them and gives one answer each, in their order;
        so many rounds may be under way at a time."""
        self._ask = ask
        self._under_way_max = under_way_max
        self._under_way = 0
        # deadline, item, who waits
        self._waiting: list[tuple[float, _Item, asyncio.Future[_Answer]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, item: _Item, timeout_s: float) -> _Answer:
        """The answer of a question that was asked after this call.

        Raises:
            TimeoutError: not within `timeout_s`.
            Exception: what the question raised.
        """
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[_Answer] = loop.create_future()
        self._waiting.append((loop.time() + timeout_s, item, answered))
        self._begin()
        async with asyncio.timeout(timeout_s):
            return await answered

    def _begin(self) -> None:
        if not self._waiting or self._under_way >= self._under_way_max:
            return
        waiting, self._waiting = self._waiting, []
        self._under_way += 1
        task = asyncio.get_running_loop().create_task(self._round(waiting), name="round")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _round(self, waiting: Sequence[tuple[float, _Item, asyncio.Future[_Answer]]]) -> None:
        loop = asyncio.get_running_loop()
        try:
            # As long as the most patient one waits; the others give up by themselves.
            patience_s = max(deadline for deadline, _, _ in waiting) - loop.time()
            answers = await self._ask([item for _, item, _ in waiting], max(0.001, patience_s))
            for (_, _, answered), answer in zip(waiting, answers, strict=True):
                if not answered.done():
                    answered.set_result(answer)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - it belongs to those who wait
            for _, _, answered in waiting:
                if not answered.done():
                    answered.set_exception(error)
        finally:
            self._under_way -= 1
            for _, _, answered in waiting:
                answered.cancel()  # of those that have no answer: the loop ends
            self._begin()

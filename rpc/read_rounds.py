"""One read index for all who wait for it: the rounds in which an edge asks its core.

A question is worth something only to those who came before it was asked. So whoever comes while one
is under way waits for the next, and that one is shared by all who came meanwhile: under load an
answer costs a share of a call, alone it costs what it did. Must not know what is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

__all__ = ["ReadRounds"]


class ReadRounds:
    """Rounds of one question; lives in one event loop."""

    def __init__(self, ask: Callable[[float], Awaitable[object]], under_way_max: int = 2) -> None:
        """`ask(timeout_s)` is the question; so many of them may be under way at a time."""
        self._ask = ask
        self._under_way_max = under_way_max
        self._under_way = 0
        self._waiting: list[tuple[float, asyncio.Future[None]]] = []  # deadline, who waits
        self._tasks: set[asyncio.Task[None]] = set()

    async def confirm(self, timeout_s: float) -> None:
        """Returns once a question that was asked after this call was answered.

        Raises:
            TimeoutError: not within `timeout_s`.
            Exception: what `ask` raised.
        """
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[None] = loop.create_future()
        self._waiting.append((loop.time() + timeout_s, answered))
        self._begin()
        async with asyncio.timeout(timeout_s):
            await answered

    def _begin(self) -> None:
        if not self._waiting or self._under_way >= self._under_way_max:
            return
        waiting, self._waiting = self._waiting, []
        self._under_way += 1
        task = asyncio.get_running_loop().create_task(self._round(waiting), name="read index")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _round(self, waiting: list[tuple[float, asyncio.Future[None]]]) -> None:
        loop = asyncio.get_running_loop()
        problem: BaseException | None = None
        try:
            # As long as the most patient one waits; the others give up by themselves.
            patience_s = max(deadline for deadline, _ in waiting) - loop.time()
            await self._ask(max(0.001, patience_s))
        except Exception as error:  # noqa: BLE001 - it belongs to those who wait
            problem = error
        except BaseException as error:
            problem = error
            raise
        finally:
            self._under_way -= 1
            for _, answered in waiting:
                if answered.done():
                    continue
                if problem is None:
                    answered.set_result(None)
                else:
                    answered.set_exception(problem)
            self._begin()

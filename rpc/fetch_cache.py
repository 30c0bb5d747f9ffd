"""Finished answers to fetches, shared by all sessions of this edge, and built once.

Owns which answers are kept, the files they lie in and their total size. A key has to name all that
an answer depends on, what the client may see included (`fetch_keys.py`); then nothing here needs to
know about clients. Must not know how an answer is built or sent.

An answer consists of parts of files: of stored packs, which cost nothing here, and of a file of
its own. A file is removed when the answer is dropped, whether or not somebody still sends it: who
sends has it open.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from quorepo.rpc.fetch_files import FetchFiles
from quorepo.rpc.shared_calls import SharedCalls, Tell
from quorepo.storage.errors import DamagedPack, StorageFull, Unavailable
from quorepo.storage.git.fetch_request import Negotiation
from quorepo.storage.objectformat import ObjectFormat

__all__ = ["Answer", "Build", "FetchCache"]

# Makes the answer in the new file, if one is needed, and returns the job's result.
Build = Callable[[Path, Tell], Awaitable[Mapping[str, Any]]]

_READ_BYTES = 1 << 20
_ANSWERS_MAX = 100_000
_NEGOTIATIONS_MAX = 4096
# Of all kept negotiations together; about 60 bytes each.
_NEGOTIATED_IDS_MAX = 500_000


@dataclass
class Answer:
    """A finished pack: `parts` one after the other, then what `trailer` comes to."""

    pack_bytes: int
    objects: int
    parts: tuple[tuple[Path, int, int], ...]
    file: Path
    file_bytes: int
    object_format: ObjectFormat
    is_sealed: bool
    users: int = 0  # who send it now
    _trailer: asyncio.Task[bytes] | None = field(default=None, repr=False)

    @contextlib.contextmanager
    def open(self) -> Iterator[list[tuple[FileIO, int, int]]]:
        """The parts as open files. Raises DamagedPack when one of them is gone."""
        with contextlib.ExitStack() as stack:
            try:
                files = [
                    (stack.enter_context(path.open("rb", buffering=0)), start, end)
                    for path, start, end in self.parts
                ]
            except FileNotFoundError as error:
                raise DamagedPack(
                    f"{Path(error.filename).name!r} is gone", next_step="try again"
                ) from error
            yield files

    def start_trailer(self) -> None:
        """Begins to compute what `trailer` waits for, once for all who send this answer."""
        if not self.is_sealed and (self._trailer is None or _has_failed(self._trailer)):
            self._trailer = asyncio.create_task(asyncio.to_thread(self._hash))

    async def trailer(self) -> bytes:
        """What follows the parts: nothing, or their hash. After `start_trailer`."""
        if self.is_sealed:
            return b""
        assert self._trailer is not None
        return await asyncio.shield(self._trailer)

    def _hash(self) -> bytes:
        digest = self.object_format.new_hash()
        try:
            with self.open() as files:
                for file, start, end in files:
                    _update(digest, file, start, end)
        except DamagedPack as error:
            # The parts are on their way already: this is no error to begin anew after.
            raise Unavailable(error.message, next_step="try again") from error
        result: bytes = digest.digest()
        return result


class FetchCache:
    """Answers by key, least recently used first out, and those that are being built."""

    def __init__(self, files: FetchFiles, bytes_max: int) -> None:
        """`bytes_max`: of the files of all kept answers together; 0 keeps none."""
        self._files = files
        self._bytes_max = bytes_max
        self._bytes = 0
        self._answers: OrderedDict[bytes, Answer] = OrderedDict()
        self._builds: SharedCalls[Answer] = SharedCalls()
        self._negotiations: OrderedDict[bytes, Negotiation] = OrderedDict()
        self._negotiated_ids = 0
        self._negotiating: SharedCalls[Negotiation] = SharedCalls()

    @property
    def answers_held(self) -> int:
        """How many answers are kept."""
        return len(self._answers)

    @property
    def bytes_held(self) -> int:
        """Of the files of all kept answers."""
        return self._bytes

    def paths(self) -> set[Path]:
        """The files of all kept answers."""
        return {answer.file for answer in self._answers.values() if answer.file_bytes}

    def get(self, key: bytes) -> Answer | None:
        """A finished answer."""
        answer = self._answers.get(key)
        if answer is not None:
            self._answers.move_to_end(key)
        return answer

    def is_building(self, key: bytes) -> bool:
        """Whether this answer is being made for somebody now."""
        return key in self._builds

    def drop(self, key: bytes) -> None:
        """Forget an answer that turned out to be no good any more."""
        answer = self._answers.pop(key, None)
        if answer is not None:
            self._remove(answer)

    async def build(
        self, key: bytes, object_format: ObjectFormat, build: Build, listener: Tell
    ) -> Answer:
        """The finished answer, or the one that `build` makes now for all who ask meanwhile.

        `listener` hears of its progress. Raises what `build` raises.
        """
        if (answer := self.get(key)) is not None:
            return answer

        async def call(tell: Tell) -> Answer:
            return await self._build(key, object_format, build, tell)

        return await self._builds.run(key, call, listener)

    async def negotiation(
        self, key: bytes, negotiate: Callable[[], Awaitable[Negotiation]]
    ) -> Negotiation:
        """The outcome for this key, remembered, or found out now for all who ask meanwhile."""
        known = self._negotiations.get(key)
        if known is not None:
            self._negotiations.move_to_end(key)
            return known

        async def call(_tell: Tell) -> Negotiation:
            result = await negotiate()
            self._remember(key, result)
            return result

        return await self._negotiating.run(key, call, lambda _text: None)

    @contextlib.contextmanager
    def using(self, answer: Answer) -> Iterator[None]:
        """While an answer is sent its file stays, even if it is larger than all that is kept."""
        answer.users += 1
        try:
            yield
        finally:
            answer.users -= 1
            self._trim()

    async def _build(
        self, key: bytes, object_format: ObjectFormat, build: Build, tell: Tell
    ) -> Answer:
        file = self._files.new()
        try:
            try:
                result = await build(file, tell)
            except StorageFull:
                if not self._drop_unused():
                    raise
                file.unlink(missing_ok=True)
                result = await build(file, tell)
            parts = tuple((Path(path), start, end) for path, start, end in result["parts"])
            own = any(path == file for path, _, _ in parts)
            answer = Answer(
                result["pack_bytes"],
                result["objects"],
                parts,
                file,
                file.stat().st_size if own else 0,
                object_format,
                result["is_sealed"],
            )
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        self._answers[key] = answer
        self._bytes += answer.file_bytes
        # Room is made when the first of those who wait is done with it: now nobody uses it yet.
        return answer

    def _is_full(self) -> bool:
        return self._bytes > self._bytes_max or len(self._answers) > _ANSWERS_MAX

    def _trim(self) -> None:
        if not self._is_full():
            return
        for key, answer in list(self._answers.items()):
            if not answer.users:
                self.drop(key)
                if not self._is_full():
                    return

    def _drop_unused(self) -> bool:
        """Makes room on a full disk. Says whether there was something to drop."""
        before = self._bytes
        for key, answer in list(self._answers.items()):
            if not answer.users:
                self.drop(key)
        return self._bytes < before

    def _remove(self, answer: Answer) -> None:
        self._bytes -= answer.file_bytes
        if answer.file_bytes:
            answer.file.unlink(missing_ok=True)

    def _remember(self, key: bytes, negotiation: Negotiation) -> None:
        self._negotiations[key] = negotiation
        self._negotiated_ids += _ids(negotiation)
        while self._negotiations and (
            len(self._negotiations) > _NEGOTIATIONS_MAX
            or self._negotiated_ids > _NEGOTIATED_IDS_MAX
        ):
            _, dropped = self._negotiations.popitem(last=False)
            self._negotiated_ids -= _ids(dropped)


def _update(digest: Any, file: FileIO, start: int, end: int) -> None:
    buffer = memoryview(bytearray(_READ_BYTES))
    file.seek(start)
    while start < end:
        size = file.readinto(buffer[: min(_READ_BYTES, end - start)])
        if not size:
            raise Unavailable("a pack is shorter than it was", next_step="try again")
        digest.update(buffer[:size])
        start += size


def _has_failed(task: asyncio.Task[bytes]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _ids(negotiation: Negotiation) -> int:
    return 1 + len(negotiation.common) + len(negotiation.shallow) + len(negotiation.unshallow)

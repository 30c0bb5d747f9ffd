"""The outgoing half of the connection to one peer: a bounded queue, one gRPC stream, reconnects.

Messages are encoded where they are sent (the Raft thread) and joined into frames on the event
loop. A lost stream loses everything queued for it; nothing is ever sent twice. Must not know what
messages mean.

`connected` means that messages flow both ways: our stream got its hello, and the peer's stream to
us is alive. Raft's bookkeeping of what is in flight needs the loss of answers reported like the
loss of requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import random
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import grpc
from grpc import aio

from quorepo.cluster.metrics import PeerCounters
from quorepo.cluster.peer.certificates import Credentials
from quorepo.cluster.peer.clients import Keepalive, PeerAddress, open_channel, tls_problem
from quorepo.internal.v1 import log_pb2, peer_pb2
from quorepo.storage.logs import fields

__all__ = ["WRONG_DISK_KEY", "LinkEvents", "PeerLink", "TransportLimits"]

log = logging.getLogger(__name__)

RAFT_METHOD = "/quorepo.internal.v1.Peer/Raft"
_REFUSED = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.FAILED_PRECONDITION)
# In the trailing metadata of a refusal: it is the caller's disk, and why in one word.
WRONG_DISK_KEY = "quorepo-wrong-disk"
_MESSAGES_TAG = b"\x22"  # RaftFrame.messages: field 4, length-delimited


@dataclasses.dataclass(frozen=True, slots=True)
class TransportLimits:
    """Bounds of the Raft transport."""

    frame_bytes_max: int = 1024 * 1024  # a larger message travels alone
    queue_bytes_max: int = 64 * 1024 * 1024
    queue_messages_max: int = 65_536
    hello_timeout_s: float = 3.0
    backoff_s_min: float = 0.05
    backoff_s_max: float = 2.0
    keepalive: Keepalive = dataclasses.field(default_factory=Keepalive)


class LinkEvents(Protocol):
    """Where a link reports; called on the event loop."""

    def connected(self, replica_id: str) -> None: ...

    def disconnected(self, replica_id: str, cause: str) -> None: ...

    def refused_as_wrong_disk(self, replica_id: str, reason: str, detail: str) -> None: ...


class PeerLink:
    """The stream of Raft messages to one replica; all but `push` belongs to the event loop."""

    def __init__(
        self,
        replica: log_pb2.Replica,
        hello: peer_pb2.RaftFrame,
        credentials: Credentials,
        limits: TransportLimits,
        events: LinkEvents,
        counters: PeerCounters,
        rng: random.Random,
    ) -> None:
        """`hello` is the first frame of every stream."""
        self.replica = replica
        self._first_frame = hello.SerializeToString()
        self._address = PeerAddress(replica.node, replica.peer_address)
        self._told = self._address  # where the peer said last that it listens
        self._called = self._address
        self._try_told = False
        self._credentials = credentials
        self._limits = limits
        self._events = events
        self._counters = counters
        self._rng = rng

        self._lock = threading.Lock()
        self._queue: deque[bytes] = deque()
        self._queue_bytes = 0
        self._accepting = False
        self._overflowed = False

        self._incoming = False
        self._outgoing = False
        self._reported = False
        self._last_note = ("", "")
        self._call: Any = None
        self._wakeup = asyncio.Event()
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # ---- any thread

    def push(self, messages: Sequence[peer_pb2.GroupMessage]) -> bool:
        """Queues messages, or drops them when not connected; returns whether to `wake` the link."""
        encoded = [message.SerializeToString() for message in messages]
        size = sum(map(len, encoded))
        with self._lock:
            if not self._accepting:
                self._counters.messages_dropped.inc(len(encoded))
                return False
            idle = not self._queue
            self._queue.extend(encoded)
            self._queue_bytes += size
            if (
                self._queue_bytes > self._limits.queue_bytes_max
                or len(self._queue) > self._limits.queue_messages_max
            ):
                # A peer this far behind is better told so by a lost connection.
                self._overflowed = True
                self._accepting = False
                self._drop_queue()
                return True
            return idle

    # ---- event loop

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(
            self._run(), name=f"peer-link-{self.replica.replica_id}"
        )

    def retire(self) -> None:
        """Ends the link: reports the loss at once if it was connected, then says nothing more."""
        self._incoming = False
        self._update("removed")
        if self._task is not None:
            self._task.cancel()

    async def closed(self) -> None:
        """Waits until a retired link has closed its stream."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def wake(self) -> None:
        """`push` asked for it."""
        self._wakeup.set()
        if self._overflowed and self._call is not None:
            self._call.cancel()  # also ends a write that waits for the peer to read

    def incoming_opened(self, told_address: str = "") -> None:
        """The peer's stream to us is there: it is up, so do not wait out a backoff. `told_address`
        is where it says that it listens."""
        self._incoming = True
        self._told = PeerAddress(self.replica.node, told_address or self.replica.peer_address)
        self._hurry.set()
        self._update("")

    def incoming_lost(self, cause: str) -> None:
        """The peer's stream to us ended: answers may be lost."""
        self._incoming = False
        self._update(cause)

    def _update(self, cause: str) -> None:
        """Brings the queue and what was reported in line with the two streams."""
        connected = self._incoming and self._outgoing
        with self._lock:
            # With the peer heard, messages may wait for the hello of the stream that is being
            # opened: the peer may take the connection for complete a moment before we do.
            self._accepting = self._incoming and not self._overflowed
            if not self._incoming or (self._reported and not connected):
                self._drop_queue()
        if connected == self._reported:
            return
        self._reported = connected
        self._counters.connected.set(connected)
        if connected:
            self._events.connected(self.replica.replica_id)
        else:
            self._events.disconnected(self.replica.replica_id, cause)

    def _drop_queue(self) -> None:
        self._counters.messages_dropped.inc(len(self._queue))
        self._queue.clear()
        self._queue_bytes = 0

    async def _run(self) -> None:
        backoff_s = self._limits.backoff_s_min
        while True:
            self._hurry.clear()
            try:
                if await self._connect_once():
                    backoff_s = self._limits.backoff_s_min
            except Exception:  # a link that ended here would cut the peer off for good
                log.exception("peer link failed", extra=fields(peer=self.replica.replica_id))
                self._stream_down("error")
            await self._pause(backoff_s)
            backoff_s = min(2 * backoff_s, self._limits.backoff_s_max)

    async def _pause(self, backoff_s: float) -> None:
        """Waits out a jittered backoff; the peer's stream to us cuts it short, not to nothing."""
        delay_s = backoff_s * self._rng.uniform(0.5, 1.0)
        floor_s = min(delay_s, self._limits.backoff_s_min * 0.5)
        await asyncio.sleep(floor_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s - floor_s):
                await self._hurry.wait()

    async def _connect_once(self) -> bool:
        """One stream from its start to its end; returns whether it ever was up."""
        # A new channel each time: names are resolved anew, and no old backoff is inherited.
        keepalive = self._limits.keepalive
        # A peer that moved is heard before its configuration follows: where nobody listens any more
        # it is called at the address that it told.
        self._called = self._told if self._try_told else self._address
        async with open_channel(self._called, self._credentials, keepalive) as channel:
            method: Any = channel.stream_stream(
                RAFT_METHOD, response_deserializer=peer_pb2.RaftHello.FromString
            )
            call = method()
            self._call = call
            try:
                cause = await self._converse(call)
            finally:
                self._call = None
                call.cancel()
            served = self._outgoing
            if not served and cause == "unreachable":
                self._try_told = self._incoming and not self._try_told
            self._stream_down(cause)  # reported before the channel takes its time to close
        return served

    async def _converse(self, call: Any) -> str:
        """Everything that is said on one stream; returns why it ended."""
        try:
            if (problem := await self._open(call)) is not None:
                return problem
            return await self._pump(call)
        except (aio.AioRpcError, aio.BaseError, asyncio.InvalidStateError):
            return await self._explain(call)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return "overflow"  # `wake` cancelled the call, not this task

    async def _open(self, call: Any) -> str | None:
        """Introduces us and checks who answers; returns what is wrong, if anything."""
        try:
            async with asyncio.timeout(self._limits.hello_timeout_s):
                await call.write(self._first_frame)
                hello = await call.read()
        except TimeoutError:
            self._note("timeout", f"no hello within {self._limits.hello_timeout_s} s")
            return "timeout"
        if hello is aio.EOF:
            return await self._explain(call)
        if hello.replica_id != self.replica.replica_id:
            self._note("refused", f"the peer answers as replica {hello.replica_id!r}")
            return "refused"
        self._last_note = ("", "")
        self._outgoing = True
        self._wakeup.set()  # what was queued while the stream was being opened
        self._update("")
        return None

    async def _pump(self, call: Any) -> str:
        call.add_done_callback(lambda _: self._wakeup.set())
        while True:
            await self._wakeup.wait()
            self._wakeup.clear()
            if call.done():
                return await self._explain(call)
            while (frame := self._next_frame()) is not None:
                await call.write(frame)
                self._counters.bytes_sent.inc(len(frame))

    def _next_frame(self) -> bytes | None:
        """Joins queued messages into one RaftFrame, up to `frame_bytes_max`.

        A repeated field is the concatenation of its elements (protobuf's encoding guide), so the
        frame is built from messages that are encoded already, without a RaftFrame object.
        """
        parts: list[bytes] = []
        size = 0
        with self._lock:
            while self._queue:
                message = self._queue[0]
                if parts and size + len(message) > self._limits.frame_bytes_max:
                    break
                self._queue.popleft()
                size += len(message)
                parts += (_MESSAGES_TAG, _varint(len(message)), message)
            self._queue_bytes -= size
        if not parts:
            return None
        self._counters.messages_sent.inc(len(parts) // 3)
        return b"".join(parts)

    def _stream_down(self, cause: str) -> None:
        self._outgoing = False
        with self._lock:
            self._drop_queue()
            self._overflowed = False
        self._update(cause)

    async def _explain(self, call: Any) -> str:
        """Why the call ended, logged when it is news."""
        code, details = await call.code(), await call.details()
        if problem := tls_problem(self._called, details or ""):
            self._note("refused", problem)
            return "refused"
        cause = "refused" if code in _REFUSED else "lost" if self._outgoing else "unreachable"
        self._note(cause, f"{code.name.lower()}: {details}")
        for key, value in (await call.trailing_metadata() or ()) if cause == "refused" else ():
            if key == WRONG_DISK_KEY:
                reason = value if isinstance(value, str) else value.decode("ascii", "replace")
                self._events.refused_as_wrong_disk(self.replica.replica_id, reason, details or "")
        return cause

    def _note(self, cause: str, text: str) -> None:
        """Logs once per change, not once per attempt."""
        # The addresses and ports in an unreachable peer's text differ between attempts.
        news = (cause, text if cause == "refused" else "")
        if news != self._last_note:
            self._last_note = news
            level = logging.WARNING if cause == "refused" else logging.INFO
            peer, address = self.replica.replica_id, self._called.address
            extra = fields(peer=peer, address=address, cause=cause, detail=text[:300])
            log.log(level, "peer not connected", extra=extra)


def _varint(value: int) -> bytes:
    """Protobuf's base-128 integer."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)

"""One request of a `git fetch` or `git clone`: the read path of architecture.md.

    parse -> ls-refs: read index, answer from the view
          -> fetch:   local view -> negotiate -> finished answer -> send it
                                    (worker)     (worker, or one that was finished before)

Owns that order and how failures are told. Must not know HTTP: bytes come from an `Incoming` and go
to a `Reply`.

`ls-refs` is linearizable. A fetch after it names exact objects, so it is answered from what this
node has; only what is not known here waits for the read index before it is refused (the requests of
one fetch may reach different nodes).
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from quorepo.rpc.bundles import bundle_uri
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.fetch_cache import Answer
from quorepo.rpc.fetch_keys import answer_key, is_at_hand, negotiation_key, view_digest
from quorepo.rpc.pack_stream import send_pack
from quorepo.rpc.reads import RepositoryView
from quorepo.rpc.reply import Liveness, Reply
from quorepo.rpc.shared_calls import Tell
from quorepo.rpc.uploads import Incoming
from quorepo.storage.errors import (
    DamagedPack,
    InvalidArgument,
    NotFound,
    QuorepoError,
    Unavailable,
)
from quorepo.storage.git.fetch_answer import KEEPALIVE
from quorepo.storage.git.negotiation import negotiate_at_once
from quorepo.storage.git.upload_pack import (
    BundleUriRequest,
    FetchRequest,
    LsRefsRequest,
    Negotiation,
    ObjectInfoRequest,
    V2Request,
    bundle_uri_answer,
    error_frames,
    error_packet,
    fetch_preamble,
    job_arguments,
    ls_refs,
    object_info_answer,
    object_info_arguments,
    parse_v0_request,
    parse_v2_request,
    progress_frames,
    request_error,
    resolve_wanted_refs,
    sends_pack,
)
from quorepo.storage.logs import fields

__all__ = ["upload_pack"]

log = logging.getLogger(__name__)

# A request of that size is parsed in less time than a thread takes to begin.
_PARSED_AT_ONCE_BYTES = 8 * 1024
_T = TypeVar("_T")


async def upload_pack(
    edge: EdgeContext, path: str, version: int, incoming: Incoming, reply: Reply
) -> None:
    """Serves the body of one upload-pack request; what goes wrong is part of the answer.

    Args:
        path: normalized.
        version: of the protocol: 0, 1 or 2.

    Raises:
        NotFound: no such repository. Nothing was written to `reply`.
        Unavailable: that can't be told now. Nothing was written to `reply`.
        ConnectionError, CancelledError: the client is gone.
    """
    view = await edge.reads.find(path, consistency="local")
    if view is None:
        view = await edge.reads.open(path)
    try:
        request = await _parse(edge, view, version, incoming)
        if isinstance(request, LsRefsRequest):
            view = await edge.reads.open(path)
            await reply.write_last(await _ls_refs(edge, request, view))
            return
        if isinstance(request, ObjectInfoRequest):
            await reply.write(await _object_info(edge, request, view))
            return
        if isinstance(request, BundleUriRequest):
            if not edge.config.git.bundle_uri:
                raise InvalidArgument("invalid command 'bundle-uri'")
            await reply.write(bundle_uri_answer(await bundle_uri(edge, view)))
            return
        if request.want_refs:
            # The client takes the answer for the refs' values: it must be as new as ls-refs.
            view = await edge.reads.open(path)
            request = resolve_wanted_refs(request, view.resolve)
    except QuorepoError as error:
        edge.metrics.errors.labels(error.reason).inc()
        if not await incoming.drain(edge.config.limits.fetch_request_bytes_max):
            reply.close_after()
        await reply.write(error_packet(str(error)))
        return
    await _Fetch(edge, view, request, reply).run()


async def _parse(
    edge: EdgeContext, view: RepositoryView, version: int, incoming: Incoming
) -> V2Request:
    limits = edge.config.limits
    body = await incoming.read_all(limits.fetch_request_bytes_max, "limits.fetch_request_bytes_max")
    bounds = {
        "lines_max": limits.negotiation_lines_max,
        "filters_max": limits.filters_combined_max,
    }

    def parse() -> V2Request:
        if version == 2:
            return parse_v2_request(body, view.object_format, **bounds)
        return parse_v0_request(body, view.object_format, version=version, **bounds)

    if len(body) <= _PARSED_AT_ONCE_BYTES:
        return parse()
    return await edge.reads.in_thread(parse)


async def _ls_refs(edge: EdgeContext, request: LsRefsRequest, view: RepositoryView) -> bytes:
    edge.metrics.advertisements.labels("ls-refs").inc()

    return await edge.reads.in_thread(lambda: ls_refs(request, view.git_view()))


async def _object_info(
    edge: EdgeContext, request: ObjectInfoRequest, view: RepositoryView
) -> bytes:
    def prepare() -> dict[str, Any]:
        arguments = object_info_arguments(request, view.git_view())
        return {**arguments, "repository": view.describe()}

    with edge.fetch_slots.take():
        arguments = await edge.reads.in_thread(prepare)
        answer = await edge.workers.run(
            "object_info", arguments, edge.config.limits.worker_timeout_s
        )
    return object_info_answer(request, answer["sizes"])


def _arguments(request: FetchRequest, view: RepositoryView) -> dict[str, Any]:
    """What both jobs of a fetch need. Reads packs: call it off the event loop."""
    return {**job_arguments(request, view.git_view()), "repository": view.describe()}


def _silence(_text: str) -> None:
    """Nobody is told how far a negotiation is."""


class _Fetch:
    def __init__(
        self, edge: EdgeContext, view: RepositoryView, request: FetchRequest, reply: Reply
    ) -> None:
        self._edge = edge
        self._view = view
        self._request = request
        self._reply = reply
        self._preamble = b""  # what has to be written before the pack, as long as it is not
        self._answering = False  # with a pack: an ERR packet would come too late

    async def run(self) -> None:
        """Answers, and counts how it ended."""
        started = time.monotonic()
        kind = "fetch" if self._request.haves else "clone"
        result, sent_bytes = "cancelled", 0
        try:
            sent_bytes = await self._answer()
            result = "ok"
        except ConnectionError:
            raise
        except QuorepoError as error:
            result = "failed"
            self._edge.metrics.errors.labels(error.reason).inc()
            await self._tell(str(error))
        except Exception:  # whatever it is, the client gets an answer
            result = "failed"
            incident = uuid.uuid4().hex[:8]
            log.exception("fetch failed", extra=fields(path=self._view.path, incident=incident))
            self._edge.metrics.errors.labels(QuorepoError.reason).inc()
            node = self._edge.config.node.name
            await self._tell(f"internal error {incident} on node {node}, see its log")
        finally:
            if self._answering:
                seconds = time.monotonic() - started
                self._edge.metrics.fetches.labels(kind, result).inc()
                self._edge.metrics.fetch_seconds.observe(seconds)
                log.info(
                    kind,
                    extra=fields(
                        path=self._view.path,
                        version=self._request.version,
                        result=result,
                        wants=len(self._request.wants),
                        haves=len(self._request.haves),
                        bytes=sent_bytes,
                        seconds=round(seconds, 4),
                    ),
                )

    async def _answer(self) -> int:
        """Returns the bytes of the pack that was sent."""
        request = self._request
        if not request.wants and not request.haves:
            await self._reply.write(fetch_preamble(request, Negotiation()))
            return 0
        seen, negotiation = await self._negotiate()
        preamble = fetch_preamble(request, negotiation)
        if not sends_pack(request, negotiation):
            await self._reply.write_last(preamble)
            return 0
        self._preamble = preamble
        try:
            return await self._send(seen, negotiation)
        except DamagedPack:
            # Packs are replaced now and then; what was negotiated holds for their successors. If
            # they are the same ones, the answer that was kept may be what is damaged.
            view = await self._edge.reads.open(self._view.path, consistency="local")
            self._view = view
            seen = await self._edge.reads.in_thread(lambda: view_digest(view))
            return await self._send(seen, negotiation)

    async def _send(self, seen: bytes, negotiation: Negotiation) -> int:
        """Raises DamagedPack when nothing but the preamble was written yet, if that."""
        request, cache = self._request, self._edge.fetch_cache
        key = answer_key(seen, request, negotiation)
        answer = cache.get(key)
        source = "hit" if answer else "shared" if cache.is_building(key) else "built"
        if source == "built" and not self._answering:
            # A node that is busy says so in an ERR packet, as long as that can be.
            with self._edge.fetch_slots.take():
                pass
        self._answering = True
        if answer is None:
            # Signs of life come after it.
            await self._reply.write(self._take_preamble())
            answer = await self._build(key, negotiation)
        metrics = self._edge.metrics
        metrics.answers.labels(source).inc()
        preamble = self._take_preamble()
        with cache.using(answer):
            try:
                sent_bytes = await send_pack(self._reply, request, answer, preamble)
                metrics.answer_bytes.labels(source).inc(sent_bytes)
            except DamagedPack:
                self._preamble = preamble
                cache.drop(key)
                raise
            except Unavailable:
                cache.drop(key)
                raise
        return sent_bytes

    def _take_preamble(self) -> bytes:
        preamble, self._preamble = self._preamble, b""
        return preamble

    async def _negotiate(self) -> tuple[bytes, Negotiation]:
        """Refuses a want that this node does not know only after the read index, and looks again
        when packs have just been replaced.

        Returns what the client may see, as a digest, and the outcome.
        """
        try:
            return await self._negotiate_with(self._view)
        except (NotFound, DamagedPack):
            self._view = await self._edge.reads.open(self._view.path)
            return await self._negotiate_with(self._view)

    async def _negotiate_with(self, view: RepositoryView) -> tuple[bytes, Negotiation]:
        request = self._request

        def keys() -> tuple[bytes, bytes]:
            seen = view_digest(view)
            return seen, negotiation_key(seen, request)

        def find() -> Negotiation | dict[str, Any]:
            tips = view.git_view().tips_in_hex()
            found = negotiate_at_once(view.packs, request, map(bytes.fromhex, tips))
            return found or _arguments(request, view)

        async def ask() -> Negotiation:
            found = await self._edge.reads.in_thread(find)
            if isinstance(found, Negotiation):
                return found
            return Negotiation.from_json(await self._run("negotiate", found, _silence))

        seen, key = await self._off_loop(keys)
        return seen, await self._edge.fetch_cache.negotiation(key, ask)

    async def _off_loop(self, function: Callable[[], _T]) -> _T:
        """The result of work on the view and the request; in a thread unless it is quick."""
        if is_at_hand(self._view, self._request):
            return function()
        return await self._edge.reads.in_thread(function)

    async def _build(self, key: bytes, negotiation: Negotiation) -> Answer:
        """The finished answer, while the client is told of the work on it."""
        request, view = self._request, self._view

        async def build(out: Path, tell: Tell) -> Mapping[str, Any]:
            arguments = await self._off_loop(lambda: _arguments(request, view))
            arguments |= {
                "negotiation": negotiation.to_json(),
                "out": str(out),
                "by_reference": True,
            }
            with self._edge.metrics.build_seconds.time():
                return await self._run("build_pack", arguments, tell)

        keepalive = KEEPALIVE if request.side_band else b""
        async with Liveness(self._reply, keepalive) as alive:
            return await self._edge.fetch_cache.build(
                key,
                view.object_format,
                build,
                lambda text: alive.say(progress_frames(request, text)),
            )

    async def _run(self, job: str, arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
        # Only those who need a worker take a slot: a hundred clients may wait for one build.
        with self._edge.fetch_slots.take():
            return await self._edge.workers.run(
                job, arguments, self._edge.config.limits.worker_timeout_s, tell
            )

    async def _tell(self, message: str) -> None:
        if not self._answering:
            await self._reply.write(request_error(self._request, message))
        elif frames := error_frames(self._request, message):
            await self._reply.write(self._take_preamble() + frames)
        else:
            self._reply.abort()

"""git's smart HTTP protocol on aiohttp: routes, headers, and the bridge to `Incoming` and `Reply`.

Owns what git expects of HTTP (Documentation/gitprotocol-http.txt and http-backend.c). Must not know
how a push or a fetch is done.

Status codes matter: before a POST was answered git shows the text of a 4xx or 5xx answer to a GET;
the text of a failed POST it hides. So a POST is answered with 200 and a report wherever that is
possible.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

from quorepo.rpc.advertisement import (
    RECEIVE_PACK,
    UPLOAD_PACK,
    advertise_fetches,
    advertise_pushes,
    protocol_version,
)
from quorepo.rpc.auth import Action, Identity
from quorepo.rpc.bundles import open_bundle
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.fetch import upload_pack
from quorepo.rpc.push import receive_pack
from quorepo.rpc.reply import Bytes
from quorepo.rpc.uploads import Incoming
from quorepo.storage.errors import (
    InvalidArgument,
    LimitExceeded,
    QuorepoError,
    Unavailable,
)
from quorepo.storage.git.pktline import FLUSH, encode
from quorepo.storage.names import normalize_path

__all__ = ["SmartHttp", "error_response"]

_ACTIONS: dict[str, Action] = {UPLOAD_PACK: "read", RECEIVE_PACK: "write"}

# http-backend.c, hdr_nocache().
_NO_CACHE = {
    "Expires": "Fri, 01 Jan 1980 00:00:00 GMT",
    "Pragma": "no-cache",
    "Cache-Control": "no-cache, max-age=0, must-revalidate",
}
_PATH = "{path:(?s:.+)}"  # of any depth, and with any character: normalize_path() judges it
# More is written first and ended then: only `write` waits for a slow client.
_LAST_BYTES_MAX = 512 * 1024
_ENCODINGS = ("identity", "gzip", "deflate")  # what aiohttp inflates
_COMMANDS_BYTES_MAX = 16 * 1024 * 1024  # what may stand before a pack: 10,000 refs of 1 KiB
_REALM = 'Basic realm="quorepo"'


class SmartHttp:
    """The handlers of one edge."""

    def __init__(self, edge: EdgeContext) -> None:
        self._edge = edge

    def routes(self) -> list[web.RouteDef]:
        """All routes; the last one catches what is no git request."""
        return [
            web.get("/healthz", self.health),
            web.get(f"/{_PATH}/info/refs", self.info_refs),
            web.get(f"/{_PATH}/bundles/{{name}}", self.bundle),
            *(
                web.post(f"/{_PATH}/{service}", handler, expect_handler=self._expect)
                for service, handler in (
                    (UPLOAD_PACK, self.fetch),
                    (RECEIVE_PACK, self.push),
                )
            ),
            web.route("*", "/{path:(?s:.*)}", self.other, expect_handler=self._expect),
        ]

    async def health(self, _request: web.Request) -> web.Response:
        """Says that this process answers; whether the cluster works is gRPC health's matter."""
        return web.Response(text="ok\n")

    async def other(self, request: web.Request) -> web.Response:
        """Everything that is not smart HTTP."""
        last = request.path.rpartition("/")[2]
        if "/objects/" in request.path or last in ("HEAD", "alternates", "packs"):
            return _text(403, "the dumb HTTP protocol is not served; use git 1.6.6 or newer")
        if request.method not in ("GET", "HEAD", "POST"):
            return _text(
                405, f"method {request.method} is not served", {"Allow": "GET, HEAD, POST"}
            )
        return _text(404, "not found: repositories are served at /<path>.git")

    async def info_refs(self, request: web.Request) -> web.Response:
        """GET info/refs: what is there, and what this server can do."""
        service = request.query.get("service")
        if service is None:
            return _text(403, "the dumb HTTP protocol is not served; use git 1.6.6 or newer")
        if service not in _ACTIONS:
            return _text(403, f"service {service[:64]!r} is not served")
        path, _identity = self._admit(request, service)
        preamble = encode(b"# service=" + service.encode() + b"\n") + FLUSH
        if service == UPLOAD_PACK:
            body = await advertise_fetches(self._edge, path, _version(request), preamble)
        else:
            body = await advertise_pushes(self._edge, path, preamble)
        self._edge.metrics.bytes_sent.labels(service).inc(len(body))
        return web.Response(
            body=body, content_type=f"application/x-{service}-advertisement", headers=_NO_CACHE
        )

    async def bundle(self, request: web.Request) -> web.StreamResponse:
        """GET bundles/<digest>.bundle: the signature in the URL is the credential."""
        query = request.query
        with self._edge.metrics.in_flight.labels("bundle").track_inprogress():
            file = await open_bundle(
                self._edge,
                normalize_path(request.match_info["path"]),
                request.match_info["name"],
                query.get("expires", ""),
                query.get("signature", ""),
            )
            response = web.StreamResponse(headers=_NO_CACHE)
            response.content_type = "application/x-git-bundle"
            response.content_length = file.size_bytes
            await response.prepare(request)
            sent = self._edge.metrics.bytes_sent.labels("bundle")
            async for piece in file.pieces():
                await response.write(piece)
                sent.inc(len(piece))
        return response

    async def fetch(self, request: web.Request) -> web.StreamResponse:
        """POST git-upload-pack."""
        return await self._serve(request, UPLOAD_PACK, self._fetch)

    async def push(self, request: web.Request) -> web.StreamResponse:
        """POST git-receive-pack."""
        return await self._serve(request, RECEIVE_PACK, self._push)

    async def _fetch(
        self, _identity: Identity, path: str, incoming: Incoming, reply: HttpReply
    ) -> None:
        await upload_pack(self._edge, path, _version(reply.request), incoming, reply)

    async def _push(
        self, identity: Identity, path: str, incoming: Incoming, reply: HttpReply
    ) -> None:
        await receive_pack(self._edge, identity, path, incoming, reply)

    async def _serve(
        self,
        request: web.Request,
        service: str,
        serve: Callable[[Identity, str, Incoming, HttpReply], Awaitable[None]],
    ) -> web.StreamResponse:
        path, identity = self._admit(request, service)
        expected = f"application/x-{service}-request"
        if request.content_type != expected:
            return _text(415, f"expected content type {expected!r}, got {request.content_type!r}")
        encoding = request.headers.get("Content-Encoding", "identity").lower()
        if encoding not in _ENCODINGS:
            return _text(415, f"content encoding {encoding[:64]!r} is not known; use gzip or none")
        self._refuse_large(request, service)
        metrics = self._edge.metrics
        incoming = Incoming(_chunks(request), metrics.bytes_received.labels(service).inc)
        reply = HttpReply(request, service, metrics.bytes_sent.labels(service).inc)
        with metrics.in_flight.labels(service).track_inprogress():
            await serve(identity, path, incoming, reply)
        return await reply.finish()

    def _admit(self, request: web.Request, service: str) -> tuple[str, Identity]:
        """Who is it, and which repository. Never touches Raft.

        Raises: Unauthenticated, PermissionDenied, InvalidArgument.
        """
        authenticator = self._edge.authenticator
        identity = authenticator.authenticate_header(request.headers.get("Authorization"))
        path = normalize_path(request.match_info["path"])
        authenticator.authorize(identity, _ACTIONS[service], path)
        return path, identity

    def _refuse_large(self, request: web.Request, service: str) -> None:
        """A body that says itself that it is too large is not read at all.

        One without a length is refused when the limit is reached, which a report can tell: git
        shows it, and shows no more of this answer than its status.

        Raises: LimitExceeded.
        """
        limits = self._edge.config.limits
        length = request.content_length or 0
        if service == RECEIVE_PACK and length > limits.push_bytes_max + _COMMANDS_BYTES_MAX:
            raise LimitExceeded(
                f"the push has {length} bytes, limits.push_bytes_max is {limits.push_bytes_max}",
                limit="limits.push_bytes_max",
            )

    async def _expect(self, request: web.Request) -> web.StreamResponse | None:
        """`Expect: 100-continue` is answered only to those whose body is wanted."""
        try:
            service = request.path.rpartition("/")[2]
            if service in _ACTIONS:
                self._admit(request, service)
                self._refuse_large(request, service)
        except QuorepoError as error:
            return error_response(error)
        if request.headers.get("Expect", "").lower() != "100-continue":
            return _text(417, "only 'Expect: 100-continue' is known")
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # What follows is the first line of the real answer.
        request.writer.output_size = 0
        return None


class HttpReply:
    """A `Reply` that is the body of one HTTP answer."""

    def __init__(self, request: web.Request, service: str, on_bytes: Callable[[int], None]) -> None:
        self.request = request
        self._on_bytes = on_bytes
        self._response = web.StreamResponse(headers=_NO_CACHE)
        self._response.content_type = f"application/x-{service}-result"

    async def write(self, data: Bytes) -> None:
        """Sends bytes; waits while the client is slow. Raises ConnectionError when it is gone."""
        if not self._response.prepared:
            await self._response.prepare(self.request)
        if data:
            await self._response.write(data)
            self._on_bytes(len(data))

    async def write_last(self, data: Bytes) -> None:
        """The same. What is small leaves in one piece, and with its length when it is all."""
        if len(data) > _LAST_BYTES_MAX:
            await self.write(data)
            return
        if not self._response.prepared:
            self._response.content_length = len(data)
            await self._response.prepare(self.request)
        await self._response.write_eof(bytes(data))
        self._on_bytes(len(data))

    def close_after(self) -> None:
        """The request was not read to its end: do not reuse the connection."""
        self._response.force_close()

    def abort(self) -> None:
        """Cuts the answer off, so that it is not mistaken for a complete one."""
        if self.request.transport is not None:
            self.request.transport.abort()

    async def finish(self) -> web.StreamResponse:
        """The answer as the handler's result; an empty one when nothing was written."""
        await self.write(b"")
        return self._response


def error_response(error: QuorepoError) -> web.Response:
    """An error before a POST was answered, as text that git shows."""
    headers = {}
    if error.http_status == 401:
        headers["WWW-Authenticate"] = _REALM
    if isinstance(error, Unavailable):
        headers["Retry-After"] = "1"
    return _text(error.http_status, str(error), headers)


def _text(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status, text=f"{message}\n", headers={**_NO_CACHE, **(headers or {})}
    )


def _version(request: web.Request) -> int:
    return protocol_version(request.headers.get("Git-Protocol", ""))


async def _chunks(request: web.Request) -> AsyncIterator[bytes]:
    """The body as it comes, inflated by aiohttp when it is gzip. The reader bounds the total."""
    try:
        while not request.content.at_eof():
            if piece := await request.content.readany():
                yield piece
    except web.RequestPayloadError as error:
        raise InvalidArgument(f"the request body can't be read: {error}") from error

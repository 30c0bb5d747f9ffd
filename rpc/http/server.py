"""The HTTP servers of an edge: git for clients, and /metrics on a port of its own.

Owns starting and stopping them, the log line and the last resort of every request. Must not know
git's protocol.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import ssl
import time
import weakref
from collections.abc import Awaitable, Callable

from aiohttp import web

from quorepo.rpc.config import split_address
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.http.smart_http import SmartHttp, error_response
from quorepo.storage.errors import FatalError, QuorepoError
from quorepo.storage.logs import fields

__all__ = ["git_application", "metrics_application", "start_server"]

log = logging.getLogger(__name__)

_BIND_TIMEOUT_S = 5.0
_BIND_RETRY_S = 0.1

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def git_application(edge: EdgeContext) -> web.Application:
    """git over HTTP, and /healthz."""

    @web.middleware
    async def observe(request: web.Request, handler: _Handler) -> web.StreamResponse:
        started = time.monotonic()
        status = "cancelled"
        try:
            response = await _guarded(edge, request, handler)
            status = str(response.status)
            return response
        except web.HTTPException as error:
            status = str(error.status)
            raise
        finally:
            edge.metrics.http_requests.labels(status).inc()
            log.info(
                "request",
                extra=fields(
                    method=request.method,
                    path=request.path,
                    service=request.query.get("service", "")[:32],
                    status=status,
                    seconds=round(time.monotonic() - started, 4),
                    client=request.remote,
                    agent=request.headers.get("User-Agent", "")[:80],
                ),
            )

    application = web.Application(middlewares=[observe])
    application.add_routes(SmartHttp(edge).routes())
    application.on_response_prepare.append(_session_end(edge.config.limits.session_commands_max))
    return application


def _session_end(commands_max: int) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """Ends a connection with the answer to its last request."""
    commands: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()

    async def count(request: web.Request, response: web.StreamResponse) -> None:
        connection = request.transport
        if connection is None:
            return  # the client is gone
        commands[connection] = commands.get(connection, 0) + 1
        if commands[connection] >= commands_max:
            response.force_close()
            response.headers["Connection"] = "close"

    return count


async def _guarded(
    edge: EdgeContext, request: web.Request, handler: _Handler
) -> web.StreamResponse:
    try:
        return await handler(request)
    except QuorepoError as error:
        edge.metrics.errors.labels(error.reason).inc()
        return error_response(error)
    except (web.HTTPException, ConnectionError):
        raise
    except FatalError as error:
        edge.on_fatal(error)
        raise
    except Exception:  # whatever it is, the client gets an answer
        incident = os.urandom(4).hex()
        log.exception("request failed", extra=fields(path=request.path, incident=incident))
        edge.metrics.errors.labels(QuorepoError.reason).inc()
        return error_response(
            QuorepoError(f"internal error {incident} on node {edge.config.node.name}, see its log")
        )


def metrics_application(edge: EdgeContext) -> web.Application:
    """GET /metrics: the edge's own text, then the core's. Served also while the core is down.

    Behind TLS, which may leave the machine, only users with a token get it.
    """
    open_to_all = edge.config.metrics.tls is None

    async def metrics(request: web.Request) -> web.Response:
        if not open_to_all:
            try:
                header = request.headers.get("Authorization")
                identity = edge.authenticator.authenticate_header(header)
                edge.authenticator.authorize(identity, "read")
            except QuorepoError as error:
                return error_response(error)
        try:
            core = await edge.core.metrics(timeout_s=2.0)
            up = 1
        except QuorepoError as error:
            core = f"# the core does not answer: {error.reason}\n".encode()
            up = 0
        state = (
            "# HELP quorepo_core_up Whether this node's core process answered.\n"
            f"# TYPE quorepo_core_up gauge\nquorepo_core_up {up}\n"
        )
        return web.Response(
            body=edge.metrics.text() + state.encode() + core,
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    application = web.Application()
    application.router.add_get("/metrics", metrics)
    return application


async def start_server(
    application: web.Application, address: str, tls: ssl.SSLContext | None = None
) -> web.AppRunner:
    """Serves an application at HOST:PORT. `cleanup()` of the result stops it.

    Raises:
        OSError: the address is in use, and still is after a few seconds.
    """
    host, port = split_address(address)
    runner = web.AppRunner(
        application,
        # A client that goes away ends the work for it: not aiohttp's default.
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=10.0,
        # Pushes of large repositories arrive for hours on one connection; idle ones end sooner.
        keepalive_timeout=75.0,
    )
    await runner.setup()
    try:
        await _bind(runner, host, port, tls)
    except BaseException:
        await runner.cleanup()
        raise
    return runner


async def _bind(runner: web.AppRunner, host: str, port: int, tls: ssl.SSLContext | None) -> None:
    """An edge that is started right after another one was killed may be a moment too early."""
    deadline = time.monotonic() + _BIND_TIMEOUT_S
    while True:
        site = web.TCPSite(
            runner, host, port, ssl_context=tls, reuse_address=True, reuse_port=False
        )
        try:
            await site.start()
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise
            await site.stop()
        await asyncio.sleep(_BIND_RETRY_S)

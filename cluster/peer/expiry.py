"""Tells in time that a node's certificate ends: a metric always, a warning every day near the end.

Connections that stand are not cut by the end of a certificate, new ones are refused: without this a
cluster would look well until a node restarts.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Callable

from prometheus_client import Gauge

from quorepo.cluster.peer.certificates import EXPIRY_WARNING, Credentials
from quorepo.storage.logs import fields

__all__ = ["watch_certificate"]

log = logging.getLogger(__name__)

_INTERVAL_S = 86_400.0


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


async def watch_certificate(
    credentials: Credentials,
    seconds_left: Gauge,
    now: Callable[[], datetime.datetime] = _now,
    interval_s: float = _INTERVAL_S,
) -> None:
    """Runs for ever. `seconds_left` is computed when it is read; negative once it is over."""
    expires_at = credentials.expires_at
    seconds_left.set_function(lambda: (expires_at - now()).total_seconds())
    while True:
        left = expires_at - now()
        if left < EXPIRY_WARNING:
            level = logging.WARNING if left > datetime.timedelta() else logging.ERROR
            log.log(
                level,
                "the certificate of this node, or its CA, ends; peers refuse it then; put a new "
                "one in cluster.tls.certificate_file and restart the node",
                extra=fields(expires_at=f"{expires_at:%Y-%m-%dT%H:%M:%SZ}", days_left=left.days),
            )
        await asyncio.sleep(interval_s)

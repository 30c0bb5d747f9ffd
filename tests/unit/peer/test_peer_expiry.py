"""The end of a certificate is told in time."""

from __future__ import annotations

import asyncio
import datetime
import logging

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from support.peer_certificates import credentials_of, now
from support.peer_nodes import wait_until

from quorepo.cluster.metrics import ClusterMetrics
from quorepo.cluster.peer.expiry import watch_certificate

DAY_S = 86_400.0


def shown(metrics: ClusterMetrics) -> float:
    lines = generate_latest(metrics.registry).decode().splitlines()
    name = "quorepo_peer_certificate_expiry_seconds "
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))


@pytest.mark.parametrize(
    ("valid_days", "level"), [(31, None), (29, logging.WARNING), (-0.1, logging.ERROR)]
)
async def test_end_of_a_certificate_is_told(
    caplog: pytest.LogCaptureFixture, valid_days: float, level: int | None
) -> None:
    caplog.set_level(logging.INFO)
    metrics = ClusterMetrics(CollectorRegistry())
    credentials = credentials_of("n1", valid_days=valid_days)
    watch = asyncio.create_task(watch_certificate(credentials, metrics.peer_certificate_expiry))
    await asyncio.sleep(0)
    assert shown(metrics) == pytest.approx(valid_days * DAY_S, abs=300)
    assert [record.levelno for record in caplog.records] == ([] if level is None else [level])
    if level is not None:
        assert "cluster.tls.certificate_file" in caplog.text
    watch.cancel()


async def test_it_is_told_again_as_the_days_pass(caplog: pytest.LogCaptureFixture) -> None:
    days = 0

    def later() -> datetime.datetime:
        return now() + datetime.timedelta(days=days)

    metrics = ClusterMetrics(CollectorRegistry())
    watch = asyncio.create_task(
        watch_certificate(
            credentials_of("n1", valid_days=32), metrics.peer_certificate_expiry, later, 0.001
        )
    )
    await asyncio.sleep(0.01)
    assert caplog.records == []
    days = 3
    await wait_until(lambda: len(caplog.records) >= 2)
    assert caplog.records[-1].__dict__["fields"]["days_left"] == 28
    watch.cancel()

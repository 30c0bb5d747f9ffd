"""What deploy/ says of the product is true."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from quorepo.cluster.metrics import ClusterMetrics
from quorepo.rpc.metrics import EdgeMetrics
from quorepo.storage.errors import FatalError

ROOT = Path(__file__).parents[3]


def test_alerts_name_metrics_that_exist() -> None:
    registry = CollectorRegistry()
    ClusterMetrics(registry)
    text = generate_latest(registry) + EdgeMetrics().text()
    declared = set(re.findall(r"^# TYPE (\S+)", text.decode(), re.MULTILINE))
    rules = (ROOT / "deploy" / "prometheus" / "quorepo.rules.yml").read_text()
    used = set(re.findall(r"quorepo_[a-z_]+", "\n".join(re.findall(r"expr: (.*)", rules))))
    assert len(used) >= 6
    assert {name.removesuffix("_bucket") for name in used} <= declared


def test_systemd_does_not_restart_what_must_not_be_restarted() -> None:
    unit = (ROOT / "deploy" / "systemd" / "quorepo@.service").read_text()
    prevented = re.search(r"^RestartPreventExitStatus=(.*)$", unit, re.MULTILINE)
    assert prevented is not None
    assert set(prevented[1].split()) == {
        str(FatalError.EXIT_IO_ERROR),
        str(FatalError.EXIT_CONFIG),
    }

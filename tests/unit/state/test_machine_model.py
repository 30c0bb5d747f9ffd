"""The machine against a model of plain dicts (support/state_model.py), under Hypothesis."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from support.state_model import AgainstModel

AgainstModel.TestCase.settings = settings(
    max_examples=120,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestMachineAgainstModel = AgainstModel.TestCase

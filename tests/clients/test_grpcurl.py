"""docs/api-grpcurl.md, run as it stands with the real grpcurl against a real edge."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.edge import TOKEN
from support.grpc_api import serving_api
from support.other_clients import installed

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = "127.0.0.1:7421"
BLOCK = re.compile(r"^```(sh|json)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with serving_api(tmp_path / "data") as api:
        yield api.under_test.edge.config.listen.grpc


def test_the_examples_run_and_answer_what_they_say(address: str) -> None:
    grpcurl = installed("grpcurl")
    text = (ROOT / "docs/api-grpcurl.md").read_text(encoding="utf-8")
    steps: list[tuple[str, Any]] = []
    for kind, body in BLOCK.findall(text):
        if kind == "sh":
            steps.append((body.replace(ADDRESS, address), None))
        else:
            steps[-1] = (steps[-1][0], json.loads(body))
    assert len(steps) >= 8
    setup = steps[0][0]
    environment = {
        **os.environ,
        "PATH": f"{grpcurl.parent}:{os.environ['PATH']}",
        "QUOREPO_TOKEN": TOKEN,
    }
    for script, expected in steps:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", setup + script],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, script + done.stdout + done.stderr
        if expected is not None:
            told = json.loads(done.stdout)
            assert alike(expected, told), f"{script}\n{done.stdout}"


def alike(expected: Any, told: Any) -> bool:
    """Whether an answer has what the page shows of it."""
    if isinstance(expected, dict):
        return isinstance(told, dict) and all(
            key in told and alike(value, told[key]) for key, value in expected.items()
        )
    if isinstance(expected, list):
        return (
            isinstance(told, list)
            and len(expected) == len(told)
            and all(map(alike, expected, told))
        )
    if isinstance(expected, str):
        pattern = ".*".join(map(re.escape, expected.split("…")))
        return re.fullmatch(pattern, str(told), re.DOTALL) is not None
    return bool(expected == told)

"""Clients other than git, as command lines; `tests/clients/install.sh` builds them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from support.edge import TOKEN
from support.git import ENVIRONMENT

INSTALLED = Path(__file__).parents[2] / "build/clients"


class Program:
    """Another git client as a command line."""

    def __init__(self, argv: list[str], home: Path) -> None:
        self._argv = argv
        self._environment = {
            **ENVIRONMENT,
            "HOME": str(home),
            "QUOREPO_USER": "admin",
        }

    def __call__(
        self,
        *arguments: str | Path,
        cwd: Path | None = None,
        check: bool = True,
        token: str = TOKEN,
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self._argv, *map(str, arguments)],
            cwd=cwd,
            env={**self._environment, "QUOREPO_TOKEN": token},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done


def installed(name: str) -> Path:
    """Where `make clients` put a client. Skips the test, or fails where all must be there."""
    place = INSTALLED / name
    if not place.exists():
        reason = f"{name} is not there: run `make clients` on a machine that can build it"
        if os.environ.get("QUOREPO_CLIENTS") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    return place

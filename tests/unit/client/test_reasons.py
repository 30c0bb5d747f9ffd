"""The reasons of errors: documented each with its code, and known to the client."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import quorepo.cluster
import quorepo.rpc
import quorepo.storage
from quorepo.rpc.client.errors import _BY_REASON
from quorepo.storage.errors import QuorepoError

ROOT = Path(__file__).resolve().parents[3]
ROW = re.compile(r"^\| `([A-Z_]+)` \| ([A-Z_]+) \|", re.MULTILINE)
# They end a process before it serves anybody.
NEVER_SENT = {"ALREADY_RUNNING", "CONFIGURATION"}


def kinds(of: type[QuorepoError] = QuorepoError) -> Iterator[type[QuorepoError]]:
    yield of
    for kind in of.__subclasses__():
        yield from kinds(kind)


def test_every_reason_is_documented_with_its_code() -> None:
    for package in (quorepo.storage, quorepo.cluster, quorepo.rpc):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    sent = {
        (kind.reason, kind.grpc_code)
        for kind in kinds()
        if kind.__module__.startswith("quorepo.") and kind.reason not in NEVER_SENT
    }
    documented = set(ROW.findall((ROOT / "docs/api-errors.md").read_text(encoding="utf-8")))
    assert documented == sent


def test_every_reason_of_the_client_is_one_of_the_api() -> None:
    documented = dict(ROW.findall((ROOT / "docs/api-errors.md").read_text(encoding="utf-8")))
    assert set(_BY_REASON) <= set(documented)
    # What is raised as the plain ApiError: nothing but its text tells what to do about it.
    assert set(documented) - set(_BY_REASON) == {
        "CORRUPT_PACK",
        "DAMAGED_PACK",
        "INTERNAL",
        "MALFORMED_OBJECT",
        "MEMBERSHIP_BUSY",
        "PACKS_CHANGED",
        "REJECTED",
        "REPOSITORY_NOT_DELETED",
        "RETENTION_OVER",
        "REVERIFY",
    }

"""quorepo: Git storage that survives losing a machine.

`quorepo.Client` and `quorepo.aio.Client` talk to a cluster (docs/client.md); `quorepo.errors` is
what they raise and `quorepo.types` what they return. They are imported when they are used.

The packages `quorepo.cluster`, `quorepo.storage` and `quorepo.rpc` are the top-level folders of the
project, linked in here; `quorepo.v1` holds the generated stubs of the public API.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quorepo import aio as aio
    from quorepo import errors as errors
    from quorepo import types as types
    from quorepo.rpc.client.synchronous.client import Client as Client

__version__ = "0.1.0"

_MODULES = ("aio", "errors", "types")


def __getattr__(name: str) -> Any:
    if name == "Client":
        return importlib.import_module("quorepo.rpc.client.synchronous.client").Client
    if name in _MODULES:
        return importlib.import_module(f"quorepo.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""What calls of `quorepo.Client` take and return (docs/client.md)."""

from quorepo.rpc.client.types import *  # noqa: F403
from quorepo.rpc.client.types import __all__ as __all__

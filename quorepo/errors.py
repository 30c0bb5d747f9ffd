"""What calls of `quorepo.Client` raise (docs/client.md)."""

from quorepo.rpc.client.errors import *  # noqa: F403
from quorepo.rpc.client.errors import __all__ as __all__

"""The client for asyncio: `quorepo.aio.Client` (docs/client.md)."""

from quorepo.rpc.client.asynchronous.client import Client

__all__ = ["Client"]

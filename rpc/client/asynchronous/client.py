"""The client as a whole: see `Client`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Self

from quorepo.rpc.client.asynchronous.blobs import Blobs
from quorepo.rpc.client.asynchronous.commits import Commits
from quorepo.rpc.client.asynchronous.diffs import Diffs
from quorepo.rpc.client.asynchronous.events import Events
from quorepo.rpc.client.asynchronous.imports import Imports
from quorepo.rpc.client.asynchronous.operations import Operations
from quorepo.rpc.client.asynchronous.refs import Refs
from quorepo.rpc.client.asynchronous.repositories import Repositories
from quorepo.rpc.client.asynchronous.transfers import Transfers
from quorepo.rpc.client.asynchronous.transport import Transport
from quorepo.rpc.client.options import make_options
from quorepo.rpc.client.session import Session

__all__ = ["Client"]


class Client:
    """A client of the gRPC API. Use as a context manager; may be shared. See docs/client.md.

    Attributes:
        repositories, refs, commits, blobs, diffs, operations, imports, transfers, events: the
            calls.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str] | None = None,
        *,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        timeout_s: float = 30.0,
        attempt_timeout_s: float = 10.0,
        consistency: str = "session",
    ) -> None:
        """Connects to nothing yet.

        Args:
            endpoints: HOST:PORT of the nodes' gRPC API, best of all of them; default:
                QUOREPO_ENDPOINT, else 127.0.0.1:7421.
            token: the access token; default: QUOREPO_TOKEN.
            token_file: a file with the token instead, read for each call.
            ca_file: CA certificates: use TLS; default: QUOREPO_CA_FILE. Needed off loopback.
            timeout_s: of a call with all its attempts; some calls take one of their own.
            attempt_timeout_s: after which a node that says nothing is left for another one.
            consistency: of reads that do not say: "session", "linearizable" or "local".

        Raises:
            InvalidArgument: nothing was tried.
        """
        options = make_options(
            endpoints, token, token_file, ca_file, timeout_s, attempt_timeout_s, consistency
        )
        session = Session(consistency)
        self._transport = Transport(options, session)
        self.repositories = Repositories(self._transport, session)
        self.refs = Refs(self._transport, session)
        self.commits = Commits(self._transport, session)
        self.blobs = Blobs(self._transport, session)
        self.diffs = Diffs(self._transport, session)
        self.operations = Operations(self._transport, session)
        self.imports = Imports(self._transport, session)
        self.transfers = Transfers(self._transport, session)
        self.events = Events(self._transport)

    async def close(self) -> None:
        """Closes all connections; the client may be used again."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

"""What a shell may complete: contexts, repositories and nodes.

A completion that needs the cluster asks it under a short deadline and stays silent when it gets no
answer: a shell must not hang or print errors at a TAB.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from quorepo.rpc.cli.failures import Failure

__all__ = ["complete_context", "complete_node", "complete_repository"]

_TIMEOUT_S = 1.0
_NAMES_MAX = 200


def complete_context(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[str]:
    """Names of contexts."""
    from quorepo.rpc.cli.contexts import load_contexts

    try:
        names = sorted(load_contexts().contexts)
    except Failure:
        return []
    return [name for name in names if name.startswith(incomplete)]


def complete_repository(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[str]:
    """Paths of repositories that begin so."""

    def ask(client: Any) -> list[str]:
        from quorepo.v1 import repository_pb2

        request = repository_pb2.ListRepositoriesRequest(
            path_prefix=incomplete, page_size=_NAMES_MAX
        )
        answer = client.call(client.repositories.ListRepositories, request)
        return [repository.path for repository in answer.repositories]

    return _ask(context, ask)


def complete_node(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[str]:
    """Names of nodes that begin so."""

    def ask(client: Any) -> list[str]:
        from quorepo.v1 import cluster_pb2

        answer = client.call(client.cluster.GetStatus, cluster_pb2.GetStatusRequest())
        return [node.name for node in answer.nodes if node.name.startswith(incomplete)]

    return _ask(context, ask)


def _ask(context: click.Context, question: Callable[[Any], list[str]]) -> list[str]:
    from quorepo.rpc.cli.client import connected
    from quorepo.rpc.cli.options import resolve_settings

    given = {**context.find_root().params}
    given.update({key: value for key, value in context.params.items() if value})
    try:
        with connected(resolve_settings(given, timeout_s=_TIMEOUT_S)) as client:
            return question(client)
    except Failure:
        return []

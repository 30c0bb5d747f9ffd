"""`quorepo node token`: lets one more node in, tells who was, and takes a token back."""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path
from typing import Any

import click

from quorepo.rpc.cli.failures import EXIT_USAGE, Failure
from quorepo.rpc.cli.groups import CommandGroup
from quorepo.rpc.cli.options import Settings, common_options

__all__ = ["token"]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@click.group("token", cls=CommandGroup, invoke_without_command=True)
@click.option(
    "--node",
    default="",
    metavar="NAME",
    help="Only for a node of this name; also one that is taken: the node comes back on a new disk.",
)
@click.option("--ttl", default="1h", show_default=True, metavar="TIME", help="30m, 4h, 7d at most.")
@click.option(
    "--file",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write it there, mode 0600, instead of printing it; must not exist.",
)
@common_options
@click.pass_context
def token(
    context: click.Context, /, node: str, ttl: str, path: Path | None, settings: Settings
) -> None:
    """Makes a token with which one node may join, once; lists and revokes them.

    Save it as cluster.join_token_file (mode 0600) on the new machine; whoever has it can become a
    member of the cluster. Needs a node that has the CA's key (cluster.tls.ca_key_file).

    \b
    Examples:
      quorepo node token --file join-token
      quorepo node token --node n4 --ttl 15m | ssh n4 'umask 077; cat > …/secrets/join-token'
      quorepo node token list
    """
    if context.invoked_subcommand is None:
        _make(node, ttl, path, settings)


def _make(node: str, ttl: str, path: Path | None, settings: Settings) -> None:
    from quorepo.rpc.cli.client import connected
    from quorepo.rpc.cli.output import emit, note
    from quorepo.v1 import cluster_pb2

    request = cluster_pb2.CreateJoinTokenRequest(node=node, lifetime_s=_seconds(ttl))
    if path is not None and path.exists():
        raise Failure(
            f"{str(path)!r} exists; nothing was tried",
            next_step="name another file",
            exit_code=EXIT_USAGE,
        )
    with connected(settings) as client:
        made = client.call(client.cluster.CreateJoinToken, request)
    if path is not None:
        _write_private(path, made.token)
    document = {
        "token": None if path is not None else made.token,
        "file": None if path is None else str(path),
        "node": node or None,
        "expires": made.expire_time.ToJsonString(),
        "ca_fingerprint": made.ca_fingerprint,
        "join": list(made.peer_addresses),
    }

    def text() -> None:
        if path is None:
            click.echo(made.token)
        else:
            click.echo(f"wrote {path}")
        note(f"for {node or 'any free name'}, once, until {document['expires']}")
        joins = " ".join(f"--join {address}" for address in made.peer_addresses)
        note(f"next: on the new machine, quorepo init /var/lib/quorepo {joins}")
        note("      save the token as /var/lib/quorepo/secrets/join-token, mode 0600")

    emit(document, settings.output, text)


def _document(token: Any) -> dict[str, Any]:
    return {
        "id": token.id,
        "state": token.state,
        "node": token.node or None,
        "actor": token.actor,
        "created": token.create_time.ToJsonString(),
        "expires": token.expire_time.ToJsonString(),
        "used_by": token.used_by or None,
        "used": token.use_time.ToJsonString() if token.HasField("use_time") else None,
    }


@token.command("list")
@common_options
def list_tokens(settings: Settings) -> None:
    """The tokens that were made, and who came with them; never the tokens themselves.

    \b
    Example:
      quorepo node token list
    """
    from quorepo.rpc.cli.client import connected
    from quorepo.rpc.cli.output import emit, print_table
    from quorepo.v1 import cluster_pb2

    with connected(settings) as client:
        answer = client.call(client.cluster.ListJoinTokens, cluster_pb2.ListJoinTokensRequest())
    rows = [_document(token) for token in answer.tokens]
    columns = ("id", "state", "node", "expires", "used_by", "actor")
    emit(
        rows,
        settings.output,
        lambda: print_table(
            "", columns, [[row[column] or "any" for column in columns[:3]]
                          + [row[column] or "–" for column in columns[3:]] for row in rows]
        ),
    )  # fmt: skip


@token.command("revoke")
@click.argument("token_id", metavar="ID")
@click.option(
    "--request-id",
    type=click.UUID,
    help="Repeat an earlier request whose outcome is not known (a UUID).",
)
@common_options
def revoke(settings: Settings, token_id: str, request_id: uuid.UUID | None) -> None:
    """Makes a token worthless that nobody used; the id is that of `quorepo node token list`.

    \b
    Example:
      quorepo node token revoke 3f0c9a1be2d47788
    """
    from quorepo.rpc.cli.client import connected
    from quorepo.rpc.cli.output import emit_done
    from quorepo.rpc.request_ids import new_request_uuid
    from quorepo.v1 import cluster_pb2

    request_id = request_id or new_request_uuid()
    request = cluster_pb2.RevokeJoinTokenRequest(id=token_id, request_id=request_id.bytes)
    with connected(settings) as client:
        answer = client.call(client.cluster.RevokeJoinToken, request, request_id=str(request_id))
    emit_done(
        _document(answer.token), settings.output, f"revoked {answer.token.id}: it lets nobody in"
    )


def _seconds(text: str) -> int:
    found = re.fullmatch(r"([1-9][0-9]{0,6})([smhd])", text)
    if found is None:
        raise Failure(
            f"{text!r} is no time; nothing was tried",
            next_step="write it as in 30m, 4h or 7d",
            exit_code=EXIT_USAGE,
        )
    return int(found[1]) * _UNITS[found[2]]


def _write_private(path: Path, token: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{token}\n")

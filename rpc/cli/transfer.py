"""`quorepo transfer`: git through the gRPC API, as git's `core.sshCommand`."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import click

from quorepo.rpc.cli.failures import EXIT_FAILED, EXIT_UNKNOWN, EXIT_USAGE, Failure
from quorepo.rpc.cli.options import resolve_settings

__all__ = ["command"]

_SERVICES = {"git-upload-pack": "UploadPack", "git-receive-pack": "ReceivePack"}
_READ_BYTES = 256 * 1024


@click.command("transfer")
@click.option("-G", "probe", is_flag=True, help="Answer git's question: speaks as OpenSSH does.")
@click.option("-o", "ssh_options", multiple=True, metavar="OPTION", help="Taken and not used.")
@click.option("-p", "port", metavar="PORT", help="Taken and not used.")
@click.option("-4", "-6", "family", is_flag=True, help="Taken and not used.")
@click.argument("host")
@click.argument("git_command", nargs=-1)
@click.pass_context
def command(
    context: click.Context,
    /,
    probe: bool,
    host: str,
    git_command: tuple[str, ...],
    **_unused: object,
) -> None:
    """Carries git's protocol through the gRPC API, in place of ssh.

    Which nodes and which token: options before `transfer`, the environment or the context, as for
    every command. HOST is not looked at, so that no URL can send the token elsewhere. Fetches
    need protocol 2, git's default.

    \b
    Example:
      git -c core.sshCommand='quorepo transfer' clone cluster:team/app
    """
    if probe:
        return
    service, path = _parse(git_command)
    version = os.environ.get("GIT_PROTOCOL", "")
    if service == "git-upload-pack" and "version=2" not in version.split(":"):
        raise Failure(
            "fetches through the API need git's protocol version 2; nothing was tried",
            next_step="git config protocol.version 2; git config ssh.variant ssh",
            exit_code=EXIT_USAGE,
        )
    import grpc

    from quorepo.rpc.cli import git_bridge
    from quorepo.rpc.cli.client import connected
    from quorepo.storage.errors import InvalidArgument
    from quorepo.v1 import transfer_pb2_grpc

    settings = resolve_settings(dict(context.obj or {}))
    pushes = service == "git-receive-pack"
    out = sys.stdout.buffer
    with connected(settings) as client:
        stub = transfer_pb2_grpc.TransferServiceStub(client.channel)
        method: Any = getattr(stub, _SERVICES[service])

        def call(messages: Iterator[Any]) -> Iterable[Any]:
            answer: Iterable[Any] = method(messages, metadata=client.metadata)
            return answer

        try:
            if pushes:
                git_bridge.push(call, path, _read, out)
            else:
                git_bridge.fetch(call, path, version, _read, out)
        except (git_bridge.CutOff, InvalidArgument) as error:
            raise _broken(str(error), pushes) from error
        except grpc.RpcError as error:
            failure = client.failure(error)
            if pushes and not client.is_told(error):
                failure = _broken(f"{client.endpoint} broke off", pushes)
            raise failure from error


def _read() -> bytes:
    return os.read(0, _READ_BYTES)


def _parse(git_command: tuple[str, ...]) -> tuple[str, str]:
    """The service and the path in what git asks ssh to run: `git-upload-pack 'team/app'`."""
    words = shlex.split(" ".join(git_command))
    if len(words) == 3 and words[0] == "git":
        words = [f"git-{words[1]}", words[2]]
    if len(words) != 2 or words[0] not in _SERVICES:
        raise Failure(
            "git asks for something else than a fetch or a push; nothing was tried",
            next_step="use it as git's core.sshCommand: quorepo transfer --help",
            exit_code=EXIT_USAGE,
        )
    return words[0], words[1].lstrip("/")


def _broken(reason: str, pushes: bool) -> Failure:
    if pushes:
        return Failure(
            f"{reason}; if no ref was reported, the push may have been done or may be done yet",
            next_step="push again (harmless)",
            exit_code=EXIT_UNKNOWN,
        )
    return Failure(f"{reason}; nothing was changed", next_step="fetch again", exit_code=EXIT_FAILED)

"""`quorepo repo import|imports|cancel-import|bundle|unbundle|archive`: whole repositories, in and
out."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quorepo.rpc.cli.completers import complete_repository
from quorepo.rpc.cli.failures import EXIT_FAILED, EXIT_UNKNOWN, EXIT_USAGE, Failure
from quorepo.rpc.cli.options import Settings, common_options

if TYPE_CHECKING:
    from quorepo import Client
    from quorepo.types import LongRunningOperation

__all__ = ["archive", "bundle", "cancel_import", "import_", "imports", "unbundle"]

_POLL_INTERVAL_S = 0.5
_REQUEST_ID = click.option(
    "--request-id",
    type=click.UUID,
    help="Repeat an earlier request whose outcome is not known (a UUID).",
)


@click.command("import")
@click.argument("path")
@click.argument("url")
@click.option(
    "--authorization-file",
    type=click.Path(dir_okay=False),
    help="File with the value of the Authorization header for URL, and nothing else.",
)
@click.option("--no-wait", is_flag=True, help="Only begin it; quorepo repo imports shows it.")
@_REQUEST_ID
@common_options
def import_(
    path: str,
    url: str,
    authorization_file: str | None,
    no_wait: bool,
    request_id: uuid.UUID | None,
    settings: Settings,
) -> None:
    """Makes a repository of the branches and tags of another git server.

    The node fetches them itself, over https from a public address unless its configuration says
    otherwise. Interrupting this command does not end the import.

    \b
    Examples:
      quorepo repo import team/app https://git.example.org/app.git
      quorepo repo import team/app https://git.example.org/app.git --authorization-file ./header
    """
    from quorepo.rpc.cli.api import api_client
    from quorepo.rpc.cli.output import emit_done

    authorization = _read(authorization_file) if authorization_file else ""
    with api_client(settings) as client:
        operation = client.imports.start(
            path,
            url,
            authorization=authorization,
            request_id=str(request_id) if request_id else None,
        )
        if not no_wait:
            operation = _wait(client, operation)
    if operation.state in ("failed", "cancelled"):
        raise _failure(operation)
    done = f"imported {operation.path}" if operation.state == "done" else f"begun {operation.name}"
    emit_done(_document(operation), settings.output, done)


@click.command("imports")
@common_options
def imports(settings: Settings) -> None:
    """Lists the imports that a node runs, and those that ended a short while ago.

    \b
    Example:
      quorepo repo imports --endpoint 127.0.0.1:7421
    """
    from quorepo.rpc.cli.api import api_client
    from quorepo.rpc.cli.output import emit, print_table

    with api_client(settings) as client:
        documents = [_document(operation) for operation in client.imports.list()]
    keys = ("path", "state", "phase", "bytes_done", "start_time", "error_message", "name")
    emit(
        documents,
        settings.output,
        lambda: print_table(
            "",
            ("path", "state", "phase", "bytes", "started", "error", "name"),
            [[document[key] or "" for key in keys] for document in documents],
        ),
    )


@click.command("cancel-import")
@click.argument("name")
@common_options
def cancel_import(name: str, settings: Settings) -> None:
    """Stops an import by the name that it was given; nothing of it is left.

    \b
    Example:
      quorepo repo cancel-import n1/8c1f03aa/0192f0c1-2222-7000-8000-000000000000
    """
    from quorepo.rpc.cli.api import api_client
    from quorepo.rpc.cli.output import emit_done

    with api_client(settings) as client:
        operation = client.imports.cancel(name)
    emit_done(_document(operation), settings.output, f"{operation.state} {operation.path}")


@click.command("bundle")
@click.argument("path", shell_complete=complete_repository)
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--ref", "refs", multiple=True, help="Only this ref, by its full name; repeatable.")
@common_options
def bundle(path: str, file: str, refs: tuple[str, ...], settings: Settings) -> None:
    """Writes a repository, or some of its refs, to a git bundle; - is standard output.

    \b
    Examples:
      quorepo repo bundle team/app app.bundle
      quorepo repo bundle team/app main.bundle --ref refs/heads/main
    """
    from quorepo.rpc.cli.api import api_client

    with api_client(settings) as client:
        _save(client.repositories.bundle(path, refs), file, path, settings)


@click.command("unbundle")
@click.argument("path")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@_REQUEST_ID
@common_options
def unbundle(path: str, file: str, request_id: uuid.UUID | None, settings: Settings) -> None:
    """Makes a repository from a git bundle.

    \b
    Example:
      quorepo repo unbundle team/copy app.bundle
    """
    from quorepo.rpc.cli.api import api_client
    from quorepo.rpc.cli.output import emit_done

    with api_client(settings) as client:
        client.repositories.exists(path)  # whether anybody answers at all is told soon
        revision = client.imports.from_bundle(
            path, Path(file), request_id=str(request_id) if request_id else None
        )
    emit_done({"path": path, "revision": str(revision)}, settings.output, f"created {path}")


@click.command("archive")
@click.argument("path", shell_complete=complete_repository)
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--revision", default="HEAD", show_default=True, help="A branch, tag or commit.")
@click.option(
    "--kind", type=click.Choice(["tar", "tar.gz", "zip"]), default="tar.gz", show_default=True
)
@click.option("--folder", default="", help="Only what is below this folder.")
@click.option("--prefix", default="", help="Before every path, such as project-1.0/.")
@common_options
def archive(
    path: str,
    file: str,
    revision: str,
    kind: str,
    folder: str,
    prefix: str,
    settings: Settings,
) -> None:
    """Writes the files of a commit to an archive; - is standard output.

    \b
    Example:
      quorepo repo archive team/app app-1.0.tar.gz --revision v1.0 --prefix app-1.0/
    """
    from quorepo.rpc.cli.api import api_client

    with api_client(settings) as client:
        chunks = client.repositories.archive(
            path, revision, kind=kind, folder=folder, prefix=prefix
        )
        _save(chunks, file, path, settings)


def _wait(client: Client, operation: LongRunningOperation) -> LongRunningOperation:
    from quorepo import errors
    from quorepo.rpc.cli.progress import progress

    with progress(f"import {operation.path}", in_bytes=True) as advance:
        while operation.state == "running":
            advance(operation.phase, operation.bytes_done, 0)
            time.sleep(_POLL_INTERVAL_S)
            try:
                operation = client.imports.get(operation.name)
            except errors.NotFound:  # the node that ran it is gone
                raise _unknown(operation, "no node knows the import any more") from None
    return operation


def _failure(operation: LongRunningOperation) -> Failure:
    if operation.state == "cancelled":
        return Failure(f"the import of {operation.path!r} was cancelled; nothing was made")
    if operation.error_reason == "OUTCOME_UNKNOWN":
        return _unknown(operation, operation.error_message)
    return Failure(operation.error_message, exit_code=EXIT_FAILED)


def _unknown(operation: LongRunningOperation, message: str) -> Failure:
    return Failure(
        f"{message}; it may have been done or may be done yet",
        next_step=f"repeat the same command with --request-id {operation.request_id} (harmless)",
        exit_code=EXIT_UNKNOWN,
    )


def _save(chunks: Iterator[bytes], file: str, path: str, settings: Settings) -> None:
    """To a file that appears when it is complete, or to standard output."""
    from quorepo.rpc.cli.output import emit_done

    if file == "-":
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        return
    target = Path(file)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    digest, size = hashlib.sha256(), 0
    try:
        with part.open("xb") as out:
            for chunk in chunks:
                out.write(chunk)
                digest.update(chunk)
                size += len(chunk)
        part.replace(target)
    except OSError as error:
        raise Failure(f"cannot write {file!r}: {error.strerror}; nothing was changed") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    document = {"path": path, "file": file, "bytes": size, "sha256": digest.hexdigest()}
    emit_done(document, settings.output, f"wrote {file} ({size} bytes)")


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(
            f"cannot read {file!r}: {error}; nothing was tried", exit_code=EXIT_USAGE
        ) from error


def _document(operation: LongRunningOperation) -> dict[str, Any]:
    return {
        "name": operation.name,
        "request_id": operation.request_id,
        "path": operation.path,
        "state": operation.state,
        "phase": operation.phase,
        "bytes_done": operation.bytes_done,
        "objects": operation.objects,
        "error_reason": operation.error_reason,
        "error_message": operation.error_message,
        "revision": None if operation.revision is None else str(operation.revision),
        "start_time": operation.start_time and operation.start_time.isoformat(),
        "end_time": operation.end_time and operation.end_time.isoformat(),
    }

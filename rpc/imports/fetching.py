"""The other end of one import's process: starts it, listens to it, ends it.

Owns how long it may take and what its end means. Must not know repositories or gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from quorepo.rpc.imports.config import ImportsSection
from quorepo.storage.errors import InvalidArgument, LimitExceeded, QuorepoError, Rejected
from quorepo.storage.frames import FRAME_BYTES_MAX, FRAME_HEADER, decode_frame, encode_frame
from quorepo.storage.objectformat import ObjectFormat

__all__ = ["Fetched", "Source", "SourceFailed", "SourceNotAllowed", "fetch"]

_URL_CHARACTERS_MAX = 2048
_AUTHORIZATION_CHARACTERS_MAX = 4096
_STDERR_BYTES_KEPT = 2000
# What the process may see of this one's environment: nothing secret, nothing that steers it.
_ENVIRONMENT = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TZ", "VIRTUAL_ENV")


class SourceFailed(Rejected):
    """The other server can't be reached, refuses, or does not speak git. Nothing was made."""

    reason = "SOURCE_FAILED"


class SourceNotAllowed(Rejected):
    """The other server has an address, or redirects to one, that this node may not ask."""

    reason = "SOURCE_NOT_ALLOWED"


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """Where an import comes from; `repr` never shows the authorization."""

    url: str
    authorization: str = dataclasses.field(default="", repr=False)

    @property
    def host(self) -> str:
        """What may be logged of it."""
        return urlsplit(self.url).hostname or ""

    def check(self, config: ImportsSection) -> None:
        """Raises InvalidArgument, SourceNotAllowed: in what can be seen without asking anybody."""
        if len(self.url) > _URL_CHARACTERS_MAX or not self.url.isascii():
            raise InvalidArgument(f"url must be at most {_URL_CHARACTERS_MAX} ASCII characters")
        try:
            parts = urlsplit(self.url)
            _port = parts.port
        except ValueError as error:
            raise InvalidArgument(f"url can't be read: {error}") from None
        if not self.url.isprintable() or " " in self.url or "\\" in self.url:
            raise InvalidArgument("url holds a character that belongs in none")
        if parts.scheme not in ("https", "http") or not parts.hostname:
            raise InvalidArgument("url must begin with https:// or http:// and a host")
        if parts.username is not None or parts.password is not None:
            raise InvalidArgument(
                "url holds a user or a password", next_step="put them into `authorization`"
            )
        if parts.query or parts.fragment:
            raise InvalidArgument("url must not have a query or a fragment")
        if parts.scheme == "http" and not config.allow_http:
            raise SourceNotAllowed(
                "sources are asked over https only",
                next_step="use https://, or ask the operator for imports.allow_http",
            )
        value = self.authorization
        if len(value) > _AUTHORIZATION_CHARACTERS_MAX or not value.isascii():
            raise InvalidArgument("authorization is too long or not ASCII")
        if value and not value.isprintable():
            raise InvalidArgument("authorization holds a character that belongs in no header")


@dataclasses.dataclass(frozen=True, slots=True)
class Fetched:
    """What the source has: its branches and tags with raw ids, HEAD as a name or as an id."""

    object_format: ObjectFormat
    refs: list[tuple[bytes, bytes]]
    head: bytes
    head_id: bytes | None
    objects: int
    received: int


async def fetch(
    source: Source,
    pack: Path,
    config: ImportsSection,
    refs_max: int,
    on_progress: Callable[[int, int], None],
) -> Fetched:
    """Fetches all branches and tags of a source; its pack is in the file `pack` then.

    Args:
        on_progress: gets bytes received and objects to come (0: not known yet); may raise.

    Raises:
        SourceFailed, SourceNotAllowed, LimitExceeded; CancelledError. The process is gone then.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # the working directory never shadows a module
        "-m",
        "quorepo.rpc.imports.source",
        str(os.getpid()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd="/",
        env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
    )
    try:
        async with asyncio.timeout(config.timeout_s):
            return await _converse(process, _request(source, pack, config, refs_max), on_progress)
    except TimeoutError:
        raise LimitExceeded(
            f"the source took longer than imports.timeout_s ({config.timeout_s:g} s)",
            limit="imports.timeout_s",
        ) from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _request(source: Source, pack: Path, config: ImportsSection, refs_max: int) -> dict[str, Any]:
    return {
        "url": source.url,
        "authorization": source.authorization,
        "pack": str(pack),
        "refs_max": refs_max,
        "allow_http": config.allow_http,
        "allow_private": config.allow_private,
        "ca_file": "" if config.ca_file is None else str(config.ca_file),
        "bytes_max": config.bytes_max,
        "redirects_max": config.redirects_max,
        "idle_timeout_s": config.idle_timeout_s,
        "memory_bytes_max": config.memory_bytes_max,
    }


async def _converse(
    process: asyncio.subprocess.Process,
    request: dict[str, Any],
    on_progress: Callable[[int, int], None],
) -> Fetched:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(encode_frame(request))
        await process.stdin.drain()
        found: dict[str, Any] | None = None
        while True:
            frame = await _frame(process.stdout)
            if "error" in frame:
                raise _error(frame)
            if "refs" in frame:
                found = frame
            elif "done" in frame and found is not None:
                return _fetched(found, frame["received"])
            else:
                on_progress(frame["received"], frame["objects"])
    except (asyncio.IncompleteReadError, OSError, ValueError, KeyError) as error:
        assert process.stderr is not None
        said = (await process.stderr.read(_STDERR_BYTES_KEPT)).decode("utf-8", "replace")
        raise QuorepoError(f"the process of the import ended: {said[-500:]}") from error


async def _frame(stream: asyncio.StreamReader) -> dict[str, Any]:
    (size,) = FRAME_HEADER.unpack(await stream.readexactly(FRAME_HEADER.size))
    if size > FRAME_BYTES_MAX:
        raise ValueError(f"frame of {size} bytes")
    return decode_frame(await stream.readexactly(size))


def _fetched(found: dict[str, Any], received: int) -> Fetched:
    object_format = ObjectFormat.from_name(found["object_format"])
    return Fetched(
        object_format=object_format,
        refs=[(bytes.fromhex(name), bytes.fromhex(oid)) for name, oid in found["refs"]],
        head=bytes.fromhex(found["head"]),
        head_id=bytes.fromhex(found["head_id"]) or None,
        objects=found["objects"],
        received=received,
    )


def _error(frame: dict[str, Any]) -> QuorepoError:
    message = f"{frame['message']}; nothing was made"
    if frame["error"] == "LimitExceeded":
        return LimitExceeded(message, limit=frame["limit"])
    if frame["error"] == "SourceNotAllowed":
        return SourceNotAllowed(
            message, next_step="use a public address, or ask the operator for imports.allow_private"
        )
    return SourceFailed(message, next_step="check the url and the authorization")

"""The process of one import: fetches refs and a pack from a git server into a file, then ends.

    python -m quorepo.rpc.imports.source <process id of the parent>

Owns what is asked of the server (dulwich speaks git) and every bound of that. One frame
(storage/frames.py) comes in: `Request`. Frames go out: `{"received": bytes, "objects": n}` now and
then, `{"refs": …}` before the pack, and last `{"done": …}` or `{"error": …}`. What the server sends
is not trusted: the memory of this process is bounded, and the pack is verified elsewhere, as that
of a push. Must not know repositories of ours.
"""

from __future__ import annotations

import os
import resource
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from quorepo.storage.frames import encode_frame, read_frame

__all__ = ["main"]

_PROGRESS_INTERVAL_S = 0.5
_PREFIXES = (b"HEAD", b"refs/heads/", b"refs/tags/")
_PACK_HEADER = struct.Struct(">4sLL")
_CONTENT_TYPE = "application/x-git-upload-pack-"


class _Failed(Exception):
    """What is told to the parent: the class of an error, the words, a limit."""

    def __init__(self, kind: str, message: str, limit: str = "") -> None:
        super().__init__(message)
        self.kind, self.limit = kind, limit


class _Tally:
    """What was received, told to the parent now and then."""

    def __init__(self, bytes_max: int, send: Callable[[dict[str, Any]], None]) -> None:
        self._bytes_max = bytes_max
        self._send = send
        self._told_at = 0.0
        self.received = 0
        self.objects = 0

    def add(self, count: int) -> None:
        """Raises _Failed above the limit."""
        self.received += count
        if self.received > self._bytes_max:
            raise _Failed(
                "LimitExceeded",
                f"the source sent more than imports.bytes_max ({self._bytes_max} bytes)",
                "imports.bytes_max",
            )
        if time.monotonic() - self._told_at >= _PROGRESS_INTERVAL_S:
            self._told_at = time.monotonic()
            self._send({"received": self.received, "objects": self.objects})


class _PackFile:
    """Where the pack goes; the object count is read from its header as it passes."""

    def __init__(self, path: str, tally: _Tally) -> None:
        self._file = open(path, "wb", buffering=1024 * 1024)  # noqa: SIM115 - closed by `close`
        self._tally = tally
        self._start = b""

    def write(self, data: bytes) -> int:
        if len(self._start) < _PACK_HEADER.size:
            self._start += data[: _PACK_HEADER.size - len(self._start)]
            if len(self._start) == _PACK_HEADER.size:
                _magic, _version, self._tally.objects = _PACK_HEADER.unpack(self._start)
        return self._file.write(data)

    def close(self) -> None:
        self._file.close()


def main() -> int:
    """Serves one request; returns the exit code. Standard output carries frames only."""
    _die_with_parent(int(sys.argv[1]))
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def send(frame: dict[str, Any]) -> None:
        answers.write(encode_frame(frame))
        answers.flush()

    request = read_frame(requests)
    if request is None:
        return 0
    _limit_memory(request["memory_bytes_max"])
    try:
        received = _fetch(request, send)
        send({"done": True, "received": received})
    except _Failed as error:
        send({"error": error.kind, "message": str(error), "limit": error.limit})
    except MemoryError:
        words = (
            "what the source sends before its pack needs more memory than "
            f"imports.memory_bytes_max ({request['memory_bytes_max']} bytes)"
        )
        send({"error": "LimitExceeded", "message": words, "limit": "imports.memory_bytes_max"})
    return 0


def _fetch(request: dict[str, Any], send: Callable[[dict[str, Any]], None]) -> int:
    from dulwich.client import HTTPUnauthorized
    from dulwich.errors import GitProtocolError, HangupException, NotGitRepository
    from urllib3.exceptions import HTTPError

    tally = _Tally(request["bytes_max"], send)
    host = urlsplit(request["url"]).hostname
    try:
        return _fetch_with(request, tally, send)
    except NotGitRepository:
        raise _Failed("SourceFailed", f"{host} has no git repository there (404)") from None
    except HTTPUnauthorized:
        given = "refuses the authorization" if request["authorization"] else "asks for one"
        raise _Failed("SourceFailed", f"{host} {given} (401)") from None
    except (GitProtocolError, HTTPError) as error:
        raise _reason(error, str(host)) from None
    except (HangupException, OSError, ValueError, AssertionError, KeyError, IndexError) as error:
        # dulwich lets these through where a server does not speak as it should.
        raise _Failed("SourceFailed", f"{host}: {_short(error)}") from None


def _reason(error: BaseException, host: str) -> _Failed:
    """What urllib3 and dulwich wrapped, in our words."""
    from urllib3.exceptions import MaxRetryError, URLSchemeUnknown

    from quorepo.rpc.imports.network import AddressRefused

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, AddressRefused):
            return _Failed("SourceNotAllowed", f"{seen}, which is not public")
        if isinstance(seen, URLSchemeUnknown):
            return _Failed("SourceNotAllowed", f"{host} redirects to a scheme that is not allowed")
        if isinstance(seen, MaxRetryError) and "redirect" in str(seen.reason):
            return _Failed(
                "LimitExceeded",
                f"{host} redirects more often than imports.redirects_max allows",
                "imports.redirects_max",
            )
        seen = seen.__cause__ or seen.__context__
    return _Failed("SourceFailed", f"{host}: {_short(error)}")


def _client(request: dict[str, Any], tally: _Tally) -> Any:
    """dulwich's client, which counts what is read and speaks the smart protocol only."""
    from dulwich.client import Urllib3HttpGitClient

    from quorepo.rpc.imports.network import pool_manager

    authorization, ca_file = request["authorization"], request["ca_file"]

    class Client(Urllib3HttpGitClient):
        def _http_request(
            self,
            url: str,
            headers: dict[str, str] | None = None,
            data: bytes | Iterator[bytes] | None = None,
            raise_for_status: bool = True,
        ) -> Any:
            if authorization and self._origin(url) == self._origin(self._base_url):
                headers = {**(headers or {}), "Authorization": authorization}
            response, read = super()._http_request(url, headers, data, raise_for_status)
            if not str(response.content_type).startswith(_CONTENT_TYPE):
                raise _Failed("SourceFailed", f"{_host(url)} speaks no smart HTTP there")

            def counted(size: int) -> bytes:
                piece = read(size)
                tally.add(len(piece))
                return piece

            return response, counted

    manager = pool_manager(
        allow_http=request["allow_http"],
        allow_private=request["allow_private"],
        redirects_max=request["redirects_max"],
        idle_timeout_s=request["idle_timeout_s"],
        ca_file=Path(ca_file) if ca_file else None,
    )
    return Client(request["url"], pool_manager=manager, thin_packs=False, quiet=True)


def _choose(refs: Mapping[Any, Any], refs_max: int) -> dict[Any, Any]:
    """Branches and tags. Raises _Failed: none, or too many."""
    chosen = {n: o for n, o in refs.items() if o is not None and n.startswith(_PREFIXES[1:])}
    if len(chosen) > refs_max:
        raise _Failed(
            "LimitExceeded",
            f"the source has {len(chosen)} branches and tags, limits.refs_per_push_max is "
            f"{refs_max}",
            "limits.refs_per_push_max",
        )
    if not chosen:
        raise _Failed("SourceFailed", "the source has no branch and no tag")
    return chosen


def _fetch_with(
    request: dict[str, Any], tally: _Tally, send: Callable[[dict[str, Any]], None]
) -> int:
    from dulwich.object_store import ObjectStoreGraphWalker

    def wanted(refs: Mapping[Any, Any], depth: int | None = None) -> list[Any]:
        return list(dict.fromkeys(_choose(refs, request["refs_max"]).values()))

    pack = _PackFile(request["pack"], tally)
    try:
        result = _client(request, tally).fetch_pack(
            "",
            wanted,
            ObjectStoreGraphWalker([], lambda _oid: []),
            pack.write,
            progress=lambda _text: None,
            ref_prefix=_PREFIXES,
        )
    finally:
        pack.close()
    shown: Mapping[Any, Any] = result.refs
    symrefs: Mapping[Any, Any] = result.symrefs or {}
    refs = _choose(shown, request["refs_max"])
    send(
        {
            "refs": [[name.hex(), oid.decode("ascii")] for name, oid in sorted(refs.items())],
            "head": symrefs.get(b"HEAD", b"").hex(),
            "head_id": (shown.get(b"HEAD") or b"").decode("ascii"),
            "object_format": result.object_format or "sha1",
            "objects": tally.objects,
        }
    )
    return tally.received


def _host(url: str) -> str:
    return urlsplit(url).hostname or "the source"


def _short(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _limit_memory(bytes_max: int) -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = bytes_max if hard == resource.RLIM_INFINITY else min(bytes_max, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _die_with_parent(parent: int) -> None:
    from quorepo.rpc.node.process import PARENT_VARIABLE, die_with_parent

    os.environ[PARENT_VARIABLE] = str(parent)
    die_with_parent()


if __name__ == "__main__":
    sys.exit(main())

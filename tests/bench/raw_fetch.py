"""A fetching client that only drains: the same request bytes for all servers, no git between."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import itertools
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO
from urllib.parse import SplitResult, unquote, urlsplit

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_READ_BYTES = 1 << 20
_NO_OBJECTS = b"PACK" + (2).to_bytes(4, "big") + (0).to_bytes(4, "big")
EMPTY_PACK = _NO_OBJECTS + hashlib.sha1(_NO_OBJECTS, usedforsecurity=False).digest()


class WrongAnswer(Exception):
    """What was measured was not what was asked for."""


def packet(line: str) -> bytes:
    """One pkt-line."""
    return b"%04x" % (len(line) + 5) + line.encode() + b"\n"


def v2_request(command: str, arguments: Sequence[str]) -> bytes:
    """A protocol v2 request as git writes it."""
    head = packet(f"command={command}") + packet("agent=git/bench") + packet("object-format=sha1")
    return head + b"0001" + b"".join(packet(line) for line in arguments) + b"0000"


def fetch_request(
    wants: Sequence[str], haves: Sequence[str] = (), *options: str, thin: bool = True
) -> bytes:
    """What `git fetch` sends last: all wants, the haves, done."""
    lines = ["thin-pack"] if thin else []
    lines += ["no-progress", "include-tag", "ofs-delta", *options]
    lines += [f"want {oid}" for oid in wants] + [f"have {oid}" for oid in haves] + ["done"]
    return v2_request("fetch", lines)


@dataclass
class Target:
    """One repository on one server. `cpu_s` tells what the server has used up so far."""

    name: str
    url: str
    cpu_s: Callable[[], float]
    memory_bytes: Callable[[], int] = field(default=lambda: 0)

    def post(self, body: bytes, keep: Path | None = None) -> int:
        """Sends one fetch or ls-refs request and drains the answer; returns its bytes."""
        headers = {
            "Content-Type": "application/x-git-upload-pack-request",
            "Content-Length": str(len(body)),
            "Git-Protocol": "version=2",
        }
        return self._exchange("POST", "git-upload-pack", headers, body, keep)

    def advertisement(self, keep: Path | None = None, service: str = "git-upload-pack") -> int:
        """GET info/refs of protocol v0, all refs in it."""
        return self._exchange("GET", f"info/refs?service={service}", {}, b"", keep)

    def push(self, updates: Sequence[tuple[str, str, str]], pack: bytes | Path) -> int:
        """One push of (old, new, name), and its report looked at; returns the report's bytes."""
        lines = [" ".join(update) for update in updates]
        lines[0] += "\0report-status object-format=sha1"
        head = b"".join(map(packet, lines)) + b"0000"
        connection, path, headers = self._connect()
        headers["Content-Type"] = "application/x-git-receive-pack-request"
        size = pack.stat().st_size if isinstance(pack, Path) else len(pack)
        headers["Content-Length"] = str(len(head) + size)
        with pack.open("rb") if isinstance(pack, Path) else io.BytesIO(pack) as file:
            body = itertools.chain([head], iter(lambda: file.read(_READ_BYTES), b""))
            connection.request("POST", f"{path}/git-receive-pack", body, headers)
            report = connection.getresponse().read()
        connection.close()
        assert b"unpack ok\n" in report, report[:500]
        assert report.count(b"ok refs/") == len(updates), report[:500]
        return len(report)

    def create_refs(self, refs: dict[str, str]) -> None:
        """One push of new refs to objects that are there; git's client takes minutes for many."""
        self.push([("0" * 40, oid, name) for name, oid in refs.items()], EMPTY_PACK)

    def _exchange(
        self, method: str, what: str, headers: dict[str, str], body: bytes, keep: Path | None
    ) -> int:
        """One request on a connection of its own. By hand: Python's HTTP client takes as long as
        a small answer does.
        """
        parts, own = self._parts()
        lines = [f"{method} {parts.path}/{what} HTTP/1.1", f"Host: {parts.netloc.split('@')[-1]}"]
        lines += [f"{name}: {value}" for name, value in {**headers, **own}.items()]
        with socket.create_connection((parts.hostname, parts.port), 3600) as connection:
            connection.sendall("\r\n".join([*lines, "\r\n"]).encode() + body)
            with (
                connection.makefile("rb") as answer,
                open(keep or os.devnull, "wb") as out,
            ):
                total = _drain(answer, out)
        assert total > 100, "an empty answer"
        return total

    def _connect(self) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
        parts, headers = self._parts()
        assert parts.hostname
        return http.client.HTTPConnection(parts.hostname, parts.port, 3600), parts.path, headers

    def _parts(self) -> tuple[SplitResult, dict[str, str]]:
        parts = urlsplit(self.url)
        headers = {}
        if parts.username:
            token = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers["Authorization"] = "Basic " + base64.b64encode(token.encode()).decode()
        return parts, headers


def _drain(answer: BufferedReader, out: BinaryIO) -> int:
    """Reads one answer; returns the bytes of its body, which go to `out`."""
    status = answer.readline()
    headers = {}
    while line := answer.readline().decode().strip().lower():
        key, _, value = line.partition(": ")
        headers[key] = value
    assert b" 200 " in status, (status, headers, answer.read(500))
    buffer = memoryview(bytearray(_READ_BYTES))
    if headers.get("transfer-encoding") != "chunked":
        length = headers.get("content-length")
        return _copy(answer, out, buffer, None if length is None else int(length))
    total = 0
    while size := int(answer.readline(), 16):
        total += _copy(answer, out, buffer, size)
        answer.readline()
    answer.readline()
    return total


def _copy(answer: BufferedReader, out: BinaryIO, buffer: memoryview, size: int | None) -> int:
    """So many bytes, or all up to the end of the connection."""
    total = 0
    while total != size:
        wanted = len(buffer) if size is None else min(len(buffer), size - total)
        count = answer.readinto(buffer[:wanted])
        if not count:
            break
        total += count
        out.write(buffer[:count])
    assert size is None or total == size, f"{total} of {size} bytes"
    return total


def pack_of(answer: Path) -> bytes:
    """The pack in the side-bands of a kept answer."""
    data = answer.read_bytes()
    pack, position = bytearray(), data.index(b"packfile\n") + len(b"packfile\n")
    while position < len(data):
        size = int(data[position : position + 4], 16)
        if size < 4:
            break
        band = data[position + 4]
        assert band != 3, data[position : position + size]
        if band == 1:
            pack += data[position + 5 : position + size]
        position += size
    return bytes(pack)


def objects_sent(pack: bytes, folder: Path, source: Path, *, strict: bool) -> set[str]:
    """The ids of the pack's own entries, after git has indexed and checked all of them.

    What a thin pack was made against is taken from `source`; whether the client has it is for the
    caller to say. `strict`: references must lead somewhere too.
    """
    subprocess.run(["git", "init", "-q", "--bare", str(folder)], check=True)
    objects = source / ".git" / "objects" if (source / ".git").exists() else source / "objects"
    (folder / "objects" / "info" / "alternates").write_text(f"{objects.resolve()}\n")
    checks = "--strict" if strict else "--fsck-objects"
    done = subprocess.run(
        ["git", "-C", str(folder), "index-pack", checks, "--stdin", "--fix-thin"],
        input=pack, check=False, capture_output=True,
    )  # fmt: skip
    if done.returncode:
        raise WrongAnswer(f"git index-pack {checks}: {done.stderr.decode()[-500:]}")
    [index] = (folder / "objects" / "pack").glob("*.idx")
    with index.open("rb") as file:
        shown = subprocess.run(
            ["git", "show-index"], stdin=file, check=True, capture_output=True, text=True
        )
    entries = (line.split() for line in shown.stdout.splitlines())
    sent = {entry[1] for entry in entries if int(entry[0]) < len(pack) - 20}
    if len(sent) != int.from_bytes(pack[8:12], "big"):
        raise WrongAnswer(f"{len(sent)} different objects in a pack that says otherwise")
    return sent


@dataclass
class Sample:
    """One measured exchange, or several at once."""

    wall_s: float
    cpu_s: float
    bytes: int


def measure(target: Target, work: Callable[[], int]) -> Sample:
    """Runs `work`, which returns bytes."""
    cpu = target.cpu_s()
    started = time.perf_counter()
    size = work()
    wall = time.perf_counter() - started
    return Sample(wall, target.cpu_s() - cpu, size)


def at_once(count: int, work: Callable[[], int]) -> int:
    """`work` in so many threads; the bytes of all. Fails unless all of them come to their end."""
    sizes: list[int] = []
    threads = [threading.Thread(target=lambda: sizes.append(work())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sizes) == count
    return sum(sizes)


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for member in found:
        found += children.get(member, [])
    return found


def cpu_seconds(pids: Sequence[int], *, own: bool = True) -> float:
    """Of living processes and of the children that they have waited for."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        ticks += sum(int(value) for value in fields[11 if own else 13 : 15])
    return ticks / _TICKS_PER_S


def anonymous_bytes(pids: Sequence[int]) -> int:
    """Anonymous memory, summed."""
    total = 0
    for pid in pids:
        try:
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    total += int(line.split()[1]) * 1024
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def peak_memory(target: Target, work: Callable[[], object]) -> int:
    """Bytes above idle while `work` runs, looked at every 5 ms."""
    idle = peak = target.memory_bytes()
    done = threading.Event()

    def look() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, target.memory_bytes())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return peak - idle

"""The core process of one node, with a load in it: `python -m bench.engine_node CONFIG RUNTIME`.

Everything is the product's: the core's main function, journal, SQLite, TLS between the nodes. Only
the proposals and reads come from inside, through the interface that the node's own services use.
Reads one command a line from standard input, JSON, and answers each with a line:

    {"do": "status", "group": 1}                                role, leader, applied index
    {"do": "put" | "refs" | "read", "clients": 16, "seconds": 2}
                                                                calls, seconds, p50_ms, p99_ms
    {"do": "usage"}                                             cpu_s by thread, rss_bytes

`refs` moves refs of the product's storage group. `put` goes to one more group, whose state is a
dictionary in memory: what is left is the engine (Raft, journal, streams between the nodes). The
third argument is the number of groups, 3 when it is left out; the last one is that of `put`.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from quorepo.cluster import core
from quorepo.cluster.apply import ApplyThread
from quorepo.cluster.gate import StagedPackGate
from quorepo.cluster.raft.host import RaftHost
from quorepo.cluster.raft.interface import Entry, Outcome, PackNeed, Proposal
from quorepo.internal.v1 import log_pb2
from quorepo.rpc.node import core_main

_TIMEOUT_S = 30.0
_GROUPS = 3
_VALUE_BYTES = 180  # with its key about the 200 bytes of an update
_REPOSITORY = "bench000"
_RAMP_DOWN_S = 30.0

hosts: list[RaftHost] = []


class _KnownHost(RaftHost):
    """The core's engine, which the load finds here."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        hosts.append(self)


class _KeyValueApply(ApplyThread):
    """Apply, but for the last group, whose state is a dictionary."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.values: dict[bytes, bytes] = {}

    def _apply(self, group: int, batch: Sequence[Entry]) -> None:
        if group != put_group():
            super()._apply(group, batch)
            return
        for entry in batch:
            if entry.kind == "command":
                key, _, value = entry.data.partition(b"=")
                self.values[key] = value
        assert self._on_applied is not None
        self._on_applied(group, batch[-1].index, {})


class _KeyValueGate(StagedPackGate):
    """The gate in front of the log; a value has no packs."""

    def missing(self, group: int, data: bytes) -> Sequence[PackNeed]:
        return () if group == put_group() else super().missing(group, data)


def put_group() -> int:
    """The group whose state is a dictionary."""
    return int(core.GROUPS[-1])


class Load:
    """Callers that each wait for an answer before the next call; answered on the Raft thread."""

    def __init__(self, host: RaftHost, kind: str, clients: int, seconds: float) -> None:
        self._host = host
        self._kind = kind
        self._clients = clients
        self._seconds = seconds
        self._took: list[float] = []
        self._lock = threading.Lock()
        self._left = clients
        self._ended = threading.Event()
        self._problem = ""

    def run(self) -> dict[str, Any]:
        """Figures, as all loads of the benchmarks give them."""
        started = time.perf_counter()
        self._end = started + self._seconds
        for client in range(self._clients):
            self._next(client)
        if not self._ended.wait(self._seconds + _RAMP_DOWN_S):
            raise RuntimeError("calls without an answer")
        if self._problem:
            raise RuntimeError(self._problem)
        elapsed = time.perf_counter() - started
        took = sorted(self._took)
        return {
            "calls": len(took),
            "seconds": elapsed,
            "p50_ms": 1e3 * took[len(took) // 2],
            "p99_ms": 1e3 * took[min(len(took) - 1, int(0.99 * len(took)))],
        }

    def _next(self, client: int) -> None:
        now = time.perf_counter()
        if now >= self._end or self._problem:
            with self._lock:
                self._left -= 1
                if self._left == 0:
                    self._ended.set()
            return
        future: Future[Any]
        if self._kind == "read":
            future = self._host.read_index(core.GROUP_STORAGE, _TIMEOUT_S)
        elif self._kind == "put":
            value = b"bench/%05d=" % client + b"x" * _VALUE_BYTES
            future = self._host.propose(put_group(), value, _TIMEOUT_S)
        else:
            future = self._host.propose(core.GROUP_STORAGE, update(client), _TIMEOUT_S)
        future.add_done_callback(functools.partial(self._answered, client, now))

    def _answered(self, client: int, started: float, future: Future[Any]) -> None:
        self._took.append(time.perf_counter() - started)
        answer = future.result()
        if isinstance(answer, Proposal) and answer.outcome is not Outcome.APPLIED:
            self._problem = f"{answer.outcome.value}: {answer.reason}"
        self._next(client)


def update(client: int) -> bytes:
    """One ref moves: about 200 bytes, as the values that etcd is given."""
    command = log_pb2.Command(
        version=1,
        request_id=uuid.uuid4().bytes,
        first_seen_ms=time.time_ns() // 1_000_000,
        actor="bench",
        transaction=log_pb2.Transaction(
            repository_id=_REPOSITORY,
            create_if_missing=True,
            object_format=log_pb2.OBJECT_FORMAT_SHA1,
            ref_updates=[
                log_pb2.RefUpdate(
                    name=b"refs/heads/bench/%03d/" % client + b"x" * 80,
                    new_oid=os.urandom(20),
                    any_old=True,
                )
            ],
        ),
    )
    return command.SerializeToString()


def usage() -> dict[str, Any]:
    """What the process has used so far, by thread."""
    ticks = os.sysconf("SC_CLK_TCK")
    threads: dict[str, float] = {}
    for task in Path("/proc/self/task").iterdir():
        name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
        fields = rest.split()
        threads[name] = threads.get(name, 0.0) + (int(fields[11]) + int(fields[12])) / ticks
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {"cpu_s": threads, "rss_bytes": pages * os.sysconf("SC_PAGE_SIZE")}


def obey(command: dict[str, Any]) -> dict[str, Any]:
    """One line's answer."""
    if command["do"] == "usage":
        return usage()
    if not hosts:
        return {"role": "", "leader": None}
    host = hosts[0]
    if command["do"] == "status":
        status = host.status(command["group"])
        first, last = status.first_index, status.last_index
        return {
            "role": status.role,
            "leader": status.leader,
            "applied_index": status.applied_index,
            "entries": last - first + 1,
        }
    return Load(host, command["do"], command["clients"], command["seconds"]).run()


def serve_commands() -> None:
    """Until standard input ends."""
    for line in sys.stdin:
        try:
            answer = obey(json.loads(line))
        except RuntimeError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


def main() -> int:
    """The command line, as the supervisor gives it to the product's core."""
    vars(core).update(RaftHost=_KnownHost, ApplyThread=_KeyValueApply, StagedPackGate=_KeyValueGate)
    groups = int(sys.argv[3]) if len(sys.argv) > 3 else _GROUPS
    vars(core)["GROUPS"] = tuple(range(groups))
    sys.argv[1:] = ["--config", sys.argv[1], "--runtime-dir", sys.argv[2]]
    threading.Thread(target=serve_commands, name="bench", daemon=True).start()
    return core_main.main()


if __name__ == "__main__":
    sys.exit(main())

"""Three etcd members on loopback, as Debian builds them, with their own fsync on; and its client.

Nothing of etcd is in this repository: the server comes from Debian's package `etcd-server`, the
client is built from etcd_load/ with `go`, both into `$QUOREPO_BENCH_CACHE` (default
`~/.cache/quorepo-bench`), once. `apt-get update` may be needed before.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import grpc
from support.demo import free_base_port

from bench import etcd_kv

__all__ = ["EtcdCluster", "Figures", "own_client"]

_MEMBERS = ("e1", "e2", "e3")
_READY_TIMEOUT_S = 30.0

Figures = dict[str, Any]  # calls, seconds, p50_ms, p99_ms


def _cache() -> Path:
    path = Path(os.environ.get("QUOREPO_BENCH_CACHE", Path.home() / ".cache/quorepo-bench"))
    path.mkdir(parents=True, exist_ok=True)
    return path


def _server() -> Path:
    """Debian's etcd, unpacked beside the system, not installed."""
    binary = _cache() / "etcd/usr/bin/etcd"
    if not binary.exists():
        subprocess.run(["apt-get", "download", "etcd-server"], cwd=_cache(), check=True)
        package = max(_cache().glob("etcd-server_*.deb"))
        subprocess.run(["dpkg", "-x", str(package), str(_cache() / "etcd")], check=True)
    return binary


def _client() -> Path:
    """The load generator over etcd's own Go client."""
    folder = _cache() / "etcd_load"
    binary, source = folder / "etcdload", Path(__file__).parent / "etcd_load"
    stale = not (folder / "main.go").exists() or (
        (folder / "main.go").read_bytes() != (source / "main.go").read_bytes()
    )
    if stale or not binary.exists():
        shutil.copytree(source, folder, dirs_exist_ok=True)
        subprocess.run(["go", "mod", "tidy"], cwd=folder, check=True, capture_output=True)
        subprocess.run(["go", "build", "-o", str(binary), "."], cwd=folder, check=True)
    return binary


class EtcdCluster:
    """Three members; a context manager. `endpoint(leads)` tells where to go."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        base = free_base_port(len(_MEMBERS))
        self.clients = [f"127.0.0.1:{base + 10 * n}" for n in range(len(_MEMBERS))]
        self._peers = [f"127.0.0.1:{base + 10 * n + 1}" for n in range(len(_MEMBERS))]
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> EtcdCluster:
        self._directory.mkdir(parents=True)
        everybody = ",".join(
            f"{name}=http://{peer}" for name, peer in zip(_MEMBERS, self._peers, strict=True)
        )
        for name, client, peer in zip(_MEMBERS, self.clients, self._peers, strict=True):
            with (self._directory / f"{name}.log").open("wb") as log:
                self._processes.append(
                    subprocess.Popen(
                        [str(_server()), "--name", name, "--data-dir", str(self._directory / name),
                         "--listen-client-urls", f"http://{client}",
                         "--advertise-client-urls", f"http://{client}",
                         "--listen-peer-urls", f"http://{peer}",
                         "--initial-advertise-peer-urls", f"http://{peer}",
                         "--initial-cluster", everybody, "--initial-cluster-state", "new",
                         "--initial-cluster-token", "bench", "--quota-backend-bytes",
                         str(4 * 1024**3)],
                        stdout=log, stderr=subprocess.STDOUT,
                    )
                )  # fmt: skip
        self.endpoint(leads=True)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(timeout=30)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def endpoint(self, *, leads: bool) -> str:
        """HOST:PORT of the leader, or of a member that follows."""
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while time.monotonic() < deadline:
            for client in self.clients:
                if _leads(client) is leads:
                    return client
            time.sleep(0.2)
        raise RuntimeError(f"etcd has no leader; see {self._directory}")


def _leads(client: str) -> bool | None:
    """Whether a member leads; None when it does not answer or knows no leader."""
    with grpc.insecure_channel(client) as channel:
        call = channel.unary_unary(
            etcd_kv.STATUS,
            request_serializer=etcd_kv.message("StatusRequest").SerializeToString,
            response_deserializer=etcd_kv.message("StatusResponse").FromString,
        )
        try:
            status = call(etcd_kv.message("StatusRequest")(), timeout=2)
        except grpc.RpcError:
            return None
    return status.leader == status.header.member_id if status.leader else None


def own_client(endpoint: str, clients: int, seconds: float, operation: str = "put") -> Figures:
    """Drives one member with etcd's own Go client: etcd at its best.

    Its benchmark tool spreads its callers over connections; one for every eight is what it got
    most calls with here.
    """
    process = subprocess.run(
        [str(_client()), "-endpoint", endpoint, "-clients", str(clients),
         "-connections", str(max(1, clients // 8)), "-seconds", str(seconds),
         "-operation", operation],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    figures: Figures = json.loads(process.stdout)
    return figures

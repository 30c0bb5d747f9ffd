"""Linearizable reads next to etcd's, at the leader and at a follower.

PYTHONPATH=tests .venv/bin/python -m bench.reads [--quick] [--clients 1,16,64] [--rounds 2]
    [--seconds 3]

read      RaftHost.read_index from inside the node's process: what comes before a local read
etcd      linearizable gets by its own Go client, from a process of its own
GetRef    the product: RefService.GetRef (linearizable) over grpc.aio, from a process of its own
etcd aio  gets from that same grpc.aio client
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.engine import EngineCluster
from bench.etcd import EtcdCluster, own_client
from bench.load import drive
from bench.product import Product

_PEERS = {"read": "etcd", "GetRef": "etcd aio"}


def rows_of(
    engine: EngineCluster, product: Product, etcd: EtcdCluster, clients: int, seconds: float
) -> dict[str, dict[str, Callable[[], dict[str, Any]]]]:
    """What to run, by place and name."""

    def at(leads: bool) -> dict[str, Callable[[], dict[str, Any]]]:
        endpoint = etcd.endpoint(leads=leads)
        return {
            "read": lambda: engine.load("read", clients, seconds, leads=leads),
            "etcd": lambda: own_client(endpoint, clients, seconds, "get"),
            "GetRef": lambda: product.load("get", clients, seconds, leads=leads),
            "etcd aio": lambda: drive(
                server="etcd", endpoint=endpoint, operation="get", clients=clients, seconds=seconds
            ),
        }

    return {"leader": at(True), "follower": at(False)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", default="1,16,64")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--quick", action="store_true", help="16 clients, a round of a second")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.clients, arguments.rounds, arguments.seconds = "16", 1, 1.0
    with tempfile.TemporaryDirectory(prefix="quorepo-bench-") as name, contextlib.ExitStack() as up:
        root = Path(name)
        engine = up.enter_context(EngineCluster(root / "engine"))
        product = up.enter_context(Product(root / "product"))
        etcd = up.enter_context(EtcdCluster(root / "etcd"))
        for clients in (int(number) for number in arguments.clients.split(",")):
            for place, kinds in rows_of(engine, product, etcd, clients, arguments.seconds).items():
                taken: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
                for _ in range(arguments.rounds):
                    for kind, run in kinds.items():
                        taken[kind].append(run())
                rates = {
                    kind: statistics.median(row["calls"] / row["seconds"] for row in rows)
                    for kind, rows in taken.items()
                }
                for kind, rows in taken.items():
                    peer = _PEERS.get(kind)
                    ratio = f"{rates[kind] / rates[peer]:6.2f} of {peer}" if peer else ""
                    p50, p99 = (
                        statistics.median(row[key] for row in rows) for key in ("p50_ms", "p99_ms")
                    )
                    print(
                        f"{clients:4} {place:9} {kind:9} {rates[kind]:8.0f}/s  p50 {p50:6.1f} ms  "
                        f"p99 {p99:6.1f} ms {ratio}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()

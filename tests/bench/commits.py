"""Commits per second next to etcd: three processes each, loopback, every fsync on, in one run.

    PYTHONPATH=tests .venv/bin/python -m bench.commits [--quick] [--clients 1,16,64,256]
        [--rounds 2] [--seconds 3] [--only engine,product] [--json FILE]

Five rows of each number of clients, at the leader and at a follower, taken in turns so that noise
hits all; the median of the rounds is shown:

    engine    proposals from inside the node's process; the state is a dictionary in memory:
              Raft, journal and its fsync, gRPC with mutual TLS between the nodes
    refs      the same with the product's state machine: each moves a ref in SQLite
    etcd      driven by its own Go client in a process of its own: etcd at its best
    product   RefService.UpdateRefs from a process of its own, over grpc.aio
    etcd aio  Put from that same grpc.aio client

etcd cannot be driven from inside, so its client's CPU counts against it, as ours does in `product`.
A round of all takes about two minutes; --quick: 16 and 64 clients, one round of a second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
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

Rate = Callable[[], dict[str, Any]]
Figures = dict[str, float]


def rates_of(
    engine: EngineCluster | None,
    product: Product | None,
    etcd: EtcdCluster,
    clients: int,
    seconds: float,
    leads: bool,
) -> dict[str, Rate]:
    """What to run, by its name, for one number of clients at the leader or at a follower."""
    found: dict[str, Rate] = {}
    endpoint = etcd.endpoint(leads=leads)
    if engine is not None:
        found["engine"] = lambda: engine.load("put", clients, seconds, leads=leads)
        found["refs"] = lambda: engine.load("refs", clients, seconds, leads=leads)
        found["etcd"] = lambda: own_client(endpoint, clients, seconds)
    if product is not None:
        found["product"] = lambda: product.load("put", clients, seconds, leads=leads)
        found["etcd aio"] = lambda: drive(
            server="etcd", endpoint=endpoint, operation="put", clients=clients, seconds=seconds
        )
    return found


def median_of(samples: list[dict[str, Any]]) -> Figures:
    """Of each figure by itself."""
    rows = [
        {
            "per_s": sample["calls"] / sample["seconds"],
            "p50_ms": sample["p50_ms"],
            "p99_ms": sample["p99_ms"],
        }
        for sample in samples
    ]
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per number of clients, place and name."""
    wanted = arguments.only.split(",")
    rows = []
    with tempfile.TemporaryDirectory(prefix="quorepo-bench-") as name, contextlib.ExitStack() as up:
        root = Path(name)
        engine = up.enter_context(EngineCluster(root / "engine")) if "engine" in wanted else None
        product = up.enter_context(Product(root / "product")) if "product" in wanted else None
        etcd = up.enter_context(EtcdCluster(root / "etcd"))
        for clients in (int(number) for number in arguments.clients.split(",")):
            for leads in (True, False):
                rates = rates_of(engine, product, etcd, clients, arguments.seconds, leads)
                samples: dict[str, list[dict[str, Any]]] = {kind: [] for kind in rates}
                for _ in range(arguments.rounds):
                    for kind, rate in rates.items():
                        samples[kind].append(rate())
                figures = {kind: median_of(taken) for kind, taken in samples.items()}
                place = "leader" if leads else "follower"
                for kind, row in figures.items():
                    rows.append({"clients": clients, "at": place, "what": kind, **row})
                show(clients, place, figures)
    return rows


def show(clients: int, place: str, figures: dict[str, Figures]) -> None:
    """One line per row; the ratio is to the etcd row that was driven alike."""
    peers = {"engine": "etcd", "refs": "etcd", "product": "etcd aio"}
    for kind, row in figures.items():
        ratio = ""
        if kind in peers:
            ratio = f"{row['per_s'] / figures[peers[kind]]['per_s']:6.2f} of {peers[kind]}"
        print(
            f"{clients:4} {place:9} {kind:9} {row['per_s']:8.0f}/s  p50 {row['p50_ms']:7.1f} ms  "
            f"p99 {row['p99_ms']:7.1f} ms {ratio}",
            flush=True,
        )


def followers(rows: list[dict[str, Any]]) -> None:
    """Follower's share of the leader's rate."""
    by = {(row["clients"], row["at"], row["what"]): row["per_s"] for row in rows}
    for (clients, place, kind), rate in by.items():
        if place == "leader" and not kind.startswith("etcd"):
            share = by[clients, "follower", kind] / rate
            print(f"{clients:4} {kind:9} follower/leader {share:5.2f}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", default="1,16,64,256")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--only", default="engine,product")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="16,64 clients, a round of a second")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.clients, arguments.rounds, arguments.seconds = "16,64", 1, 1.0
    rows = measure(arguments)
    followers(rows)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

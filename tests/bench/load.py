"""A closed-loop load over grpc.aio, in a process of its own; the same client for both servers.

    python -m bench.load '{"server": "etcd", "endpoint": "127.0.0.1:2379", "operation": "put", …}'

Keys: server (etcd, quorepo), endpoint, operation (put, get), clients, seconds; of quorepo also
token, repository and oids (two commits that it has). Prints one line of JSON: calls, seconds,
p50_ms, p99_ms, cpu_s of this client. Must not start servers.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from bench import etcd_kv
from quorepo.v1 import ref_pb2

__all__ = ["drive"]

_TIMEOUT_S = 30.0
_VALUE_BYTES = 200
_REFS = "/quorepo.v1.RefService/"

Call = Callable[[int], Awaitable[Any]]
Factory = Callable[[grpc.aio.Channel, dict[str, Any]], Call]


def drive(**what: Any) -> dict[str, Any]:
    """Runs this module in a process of its own; the keys are those of the command line."""
    process = subprocess.run(
        [sys.executable, "-m", "bench.load", json.dumps(what)],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    figures: dict[str, Any] = json.loads(process.stdout)
    return figures


def _etcd_put(channel: grpc.aio.Channel, what: dict[str, Any]) -> Call:
    request, response = etcd_kv.message("PutRequest"), etcd_kv.message("PutResponse")
    method: Any = channel.unary_unary(
        etcd_kv.PUT,
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString,
    )
    value = b"x" * _VALUE_BYTES
    return lambda client: method(request(key=b"bench/%d" % client, value=value), timeout=_TIMEOUT_S)


def _etcd_get(channel: grpc.aio.Channel, what: dict[str, Any]) -> Call:
    request, response = etcd_kv.message("RangeRequest"), etcd_kv.message("RangeResponse")
    method: Any = channel.unary_unary(
        etcd_kv.GET,
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString,
    )
    return lambda client: method(request(key=b"bench/%d" % client), timeout=_TIMEOUT_S)


def _updates(what: dict[str, Any]) -> Callable[[int], ref_pb2.UpdateRefsRequest]:
    oids = itertools.cycle(what["oids"])

    def request(client: int) -> ref_pb2.UpdateRefsRequest:
        name = b"refs/heads/bench/%05d" % client
        update = ref_pb2.RefUpdate(name=name, new_oid=next(oids), any_old=True)
        return ref_pb2.UpdateRefsRequest(repository=what["repository"], updates=[update])

    return request


def _quorepo_method(
    channel: grpc.aio.Channel, what: dict[str, Any], name: str, request: Any, response: Any
) -> Callable[[Any], Awaitable[Any]]:
    method: Any = channel.unary_unary(
        _REFS + name,
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString,
    )
    metadata = (("authorization", f"Bearer {what['token']}"),)
    return lambda message: method(message, timeout=_TIMEOUT_S, metadata=metadata)


def _quorepo_put(channel: grpc.aio.Channel, what: dict[str, Any]) -> Call:
    method = _quorepo_method(
        channel, what, "UpdateRefs", ref_pb2.UpdateRefsRequest, ref_pb2.UpdateRefsResponse
    )
    request = _updates(what)
    return lambda client: method(request(client))


def _quorepo_get(channel: grpc.aio.Channel, what: dict[str, Any]) -> Call:
    method = _quorepo_method(channel, what, "GetRef", ref_pb2.GetRefRequest, ref_pb2.GetRefResponse)
    request = ref_pb2.GetRefRequest(repository=what["repository"], name=b"HEAD")
    return lambda client: method(request)


_CALLS: dict[tuple[str, str], Factory] = {
    ("etcd", "put"): _etcd_put,
    ("etcd", "get"): _etcd_get,
    ("quorepo", "put"): _quorepo_put,
    ("quorepo", "get"): _quorepo_get,
}


async def _run(what: dict[str, Any]) -> dict[str, Any]:
    took: list[float] = []
    async with grpc.aio.insecure_channel(what["endpoint"]) as channel:
        call = _CALLS[what["server"], what["operation"]](channel, what)
        await call(0)  # connects
        started = time.perf_counter()
        end = started + what["seconds"]

        async def client(number: int) -> None:
            while (before := time.perf_counter()) < end:
                await call(number)
                took.append(time.perf_counter() - before)

        await asyncio.gather(*(client(number) for number in range(what["clients"])))
        elapsed = time.perf_counter() - started
    took.sort()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "calls": len(took),
        "seconds": elapsed,
        "p50_ms": 1e3 * took[len(took) // 2],
        "p99_ms": 1e3 * took[min(len(took) - 1, int(0.99 * len(took)))],
        "cpu_s": used.ru_utime + used.ru_stime,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_run(json.loads(sys.argv[1])))))

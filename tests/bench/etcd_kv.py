"""The few messages of etcd's v3 API that the benchmarks send, described here and built at run time.

Field numbers are those of etcd's rpc.proto; what is not sent or read is left out, as protobuf
allows. Must not know who measures what.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["GET", "PUT", "STATUS", "message"]

PUT = "/etcdserverpb.KV/Put"
GET = "/etcdserverpb.KV/Range"
STATUS = "/etcdserverpb.Maintenance/Status"

_PACKAGE = "etcdserverpb"
_Field = descriptor_pb2.FieldDescriptorProto
# message -> field -> (number, type)
_MESSAGES: dict[str, dict[str, tuple[int, Any]]] = {
    "ResponseHeader": {
        "member_id": (2, _Field.TYPE_UINT64),
        "revision": (3, _Field.TYPE_INT64),
    },
    "PutRequest": {"key": (1, _Field.TYPE_BYTES), "value": (2, _Field.TYPE_BYTES)},
    "PutResponse": {"header": (1, "ResponseHeader")},
    "RangeRequest": {"key": (1, _Field.TYPE_BYTES)},
    "RangeResponse": {"header": (1, "ResponseHeader"), "count": (4, _Field.TYPE_INT64)},
    "StatusRequest": {},
    "StatusResponse": {"header": (1, "ResponseHeader"), "leader": (4, _Field.TYPE_UINT64)},
}


def _pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(
        name="bench/etcd_kv.proto", package=_PACKAGE, syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        described = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            added = described.field.add(
                name=field, number=number, label=_Field.LABEL_OPTIONAL, json_name=field
            )
            if isinstance(kind, str):
                added.type, added.type_name = _Field.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                added.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


_POOL = _pool()


def message(name: str) -> Any:
    """The class of one of the messages above."""
    descriptor = _POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}")
    return message_factory.GetMessageClass(descriptor)

"""The methods of the public API by their descriptors: called, and given requests that are good or
spoiled in one field."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor

from support.edge import TOKEN
from support.grpc_api import Api, Refused

__all__ = ["REVISIONS", "ask", "good", "reads", "stub_of", "variants"]

SERVICES = ("blob", "commit", "diff", "ref", "repository")
REVISIONS = ("commit", "revisions", "exclusions", "ancestor", "descendant", "left", "right",
             "commits", "pointing_at", "containing", "head", "base")  # fmt: skip


def reads() -> list[MethodDescriptor]:
    found = []
    for name in SERVICES:
        module = importlib.import_module(f"quorepo.v1.{name}_pb2")
        for service in module.DESCRIPTOR.services_by_name.values():
            found += [
                method
                for method in service.methods
                if "consistency" in method.input_type.fields_by_name
            ]
    return found


def stub_of(api: Api, method: MethodDescriptor) -> Any:
    """What calls it."""
    service = method.containing_service
    module = importlib.import_module(f"{service.file.name[:-6].replace('/', '.')}_pb2_grpc")
    return getattr(getattr(module, f"{service.name}Stub")(api.channel), method.name)


def ask(api: Api, method: MethodDescriptor, request: Any, token: str = TOKEN) -> list[Any]:
    """Its answers; raises Refused."""
    call = stub_of(api, method)
    metadata = (("authorization", f"Bearer {token}"),)
    try:
        answer = call(request, timeout=60, metadata=metadata)
        return list(answer) if method.server_streaming else [answer]
    except grpc.RpcError as error:
        raise Refused(error) from error


def good(method: MethodDescriptor, path: str) -> Any:
    """A request of a read that is answered, of a repository with the history of `push_history`."""
    request: Any = getattr(
        importlib.import_module(method.input_type.file.name[:-6].replace("/", ".") + "_pb2"),
        method.input_type.name,
    )()
    for field in method.input_type.fields:
        if field.name == "repository" or (field.name == "path" and field.type == field.TYPE_STRING):
            setattr(request, field.name, path)
    fields = method.input_type.fields_by_name
    if method.name == "FindMergeBase":
        request.commits.extend([b"main", b"v1"])
    for name in ("commit", "ancestor", "descendant", "left", "right"):
        if name in fields:
            setattr(request, name, b"main")
    if method.name in ("GetRef", "CheckRefExists"):
        request.name = b"refs/heads/main"
    if method.name == "SearchContent":
        request.pattern = b"hello"
    if method.name == "BatchGetBlobs":
        request.items.add(path=b"README")
    if "range" in fields:
        request.range.head = b"main"
    if method.name in ("Blame", "GetTreeEntry", "GetLastCommitForPath"):
        request.path = b"README"
    if "oid" in fields:
        request.oid = "ce013625030ba8dba906f756967f9e9ca394464a"  # hello
    return request


def variants(request: Any, name: str, bad: Any) -> Iterator[Any]:
    """The request with one field made bad; none when it has no such field."""
    for message in (request, getattr(request, "range", None), getattr(request, "options", None)):
        if message is None or name not in message.DESCRIPTOR.fields_by_name:
            continue
        field = message.DESCRIPTOR.fields_by_name[name]
        if isinstance(bad, bytes) != (field.type == FieldDescriptor.TYPE_BYTES):
            continue
        before = type(request)()
        before.CopyFrom(request)
        if field.is_repeated:
            getattr(message, name).append(bad)
        else:
            setattr(message, name, bad)
        yield request
        request.CopyFrom(before)

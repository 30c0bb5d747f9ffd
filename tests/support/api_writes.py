"""Requests of the methods of the API that change something: each would be taken as it is."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor

from quorepo.v1 import commit_pb2, import_pb2, operation_pb2, ref_pb2, repository_pb2, transfer_pb2
from support.edge import TOKEN
from support.grpc_api import Api, Refused

__all__ = ["all_methods", "call_any", "good_writes"]

FILES = ("blob", "cluster", "commit", "diff", "event", "import", "operation", "ref", "repository",
         "transfer")  # fmt: skip
ADA = commit_pb2.Signature(name=b"Ada", email=b"ada@example.org")


def all_methods() -> list[MethodDescriptor]:
    """Of all services of quorepo.v1."""
    return [
        method
        for name in FILES
        for service in importlib.import_module(
            f"quorepo.v1.{name}_pb2"
        ).DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]


def good_writes(path: str, oid: str) -> dict[str, Any]:
    """By the name of the method; of one that takes a stream its header.

    Args:
        path: of a repository with the history of `push_history`.
        oid: of its branch main.
    """
    on_main: dict[str, Any] = {"repository": path, "branch": b"main"}
    update = ref_pb2.RefUpdate(name=b"refs/heads/new", new_oid=oid, expected_old_oid="")
    updates = ref_pb2.UpdateRefsRequest(repository=path, updates=[update])
    op, rp = operation_pb2, repository_pb2
    return {
        "CommitFiles": op.CommitFilesRequest.Header(**on_main, message=b"m", author=ADA),
        "CreateBranch": op.CreateBranchRequest(repository=path, branch=b"new", start=b"main"),
        "DeleteBranch": op.DeleteBranchRequest(repository=path, branch=b"other"),
        "CreateTag": op.CreateTagRequest(
            repository=path, tag=b"new", target=b"main", message=b"m", tagger=ADA
        ),
        "DeleteTag": op.DeleteTagRequest(repository=path, tag=b"v1"),
        "Merge": op.MergeRequest(**on_main, source=b"other", author=ADA),
        "MergeCheck": op.MergeCheckRequest(repository=path, target=b"main", source=b"other"),
        "CherryPick": op.CherryPickRequest(**on_main, commit=b"other", committer=ADA),
        "Revert": op.RevertRequest(**on_main, commit=b"main", author=ADA),
        "Rebase": op.RebaseRequest(**on_main, onto=b"other", committer=ADA),
        "UpdateRefs": updates,
        "BatchUpdateRefs": ref_pb2.BatchUpdateRefsRequest(requests=[updates]),
        "DeleteRefs": ref_pb2.DeleteRefsRequest(repository=path, names=[b"refs/tags/v1"]),
        "SetDefaultBranch": ref_pb2.SetDefaultBranchRequest(repository=path, branch=b"other"),
        "SetHead": ref_pb2.SetHeadRequest(repository=path, oid=oid),
        "CreateRepository": rp.CreateRepositoryRequest(path="new/one", default_branch=b"main"),
        "UpdateRepository": rp.UpdateRepositoryRequest(path=path, description="d"),
        "RenameRepository": rp.RenameRepositoryRequest(path=path, new_path="new/name"),
        "ForkRepository": rp.ForkRepositoryRequest(path=path, new_path="new/fork"),
        "DeleteRepository": rp.DeleteRepositoryRequest(path=path),
        "UndeleteRepository": rp.UndeleteRepositoryRequest(repository_id="x", path="new/undeleted"),
        "OptimizeRepository": rp.OptimizeRepositoryRequest(path=path),
        "PruneRepository": rp.PruneRepositoryRequest(path=path),
        "CreateRepositoryFromBundle": import_pb2.CreateRepositoryFromBundleRequest.Header(
            path="new/bundle"
        ),
        "ImportRepository": import_pb2.ImportRepositoryRequest(
            path="new/import", url="https://git.example.org/app.git"
        ),
        "UploadPack": transfer_pb2.TransferHeader(repository=path),
        "ReceivePack": transfer_pb2.TransferHeader(repository=path),
    }


def call_any(api: Api, method: MethodDescriptor, request: Any) -> list[Any]:
    """Calls any method of the API and gives its answers; raises Refused.

    Args:
        request: a message; bytes are sent as they are; of a method that takes a stream its header,
            which nothing follows.
    """
    file = method.containing_service.file.name[:-6].replace("/", ".")
    module = importlib.import_module(f"{file}_pb2")
    sent = request
    if method.client_streaming:
        kind = getattr(module, method.input_type.name)
        sent = iter([request if isinstance(request, bytes) else kind(header=request)])
    shape = f"{_kind(method.client_streaming)}_{_kind(method.server_streaming)}"
    call: Any = getattr(api.channel, shape)(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda m: m if isinstance(m, bytes) else m.SerializeToString(),
        response_deserializer=lambda data: data,
    )
    metadata = (("authorization", f"Bearer {TOKEN}"),)
    try:
        answer = call(sent, timeout=60, metadata=metadata)
        return list(_messages(answer)) if method.server_streaming else [answer]
    except grpc.RpcError as error:
        raise Refused(error) from error


def _messages(answer: Any) -> Iterator[Any]:
    yield from answer


def _kind(streams: bool) -> str:
    return "stream" if streams else "unary"

"""EventService: everything in log order, resumable from every message, bounded."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from support.edge import TOKEN
from support.git import WorkTree
from support.grpc_api import Api, Refused
from support.waiting import eventually

from quorepo.v1 import event_pb2, ref_pb2, repository_pb2

KIND = event_pb2.Event.Kind


@contextlib.contextmanager
def watching(api: Api, **fields: Any) -> Iterator[Any]:
    metadata = (("authorization", f"Bearer {TOKEN}"),)
    call = api.events.Watch(event_pb2.WatchRequest(**fields), timeout=30, metadata=metadata)
    try:
        yield call
    except grpc.RpcError as error:
        raise Refused(error) from error
    finally:
        call.cancel()


def next_event(call: Any) -> Any:
    for message in call:
        if message.WhichOneof("kind") == "event":
            return message
    raise AssertionError("the stream ended")


def test_changes_come_in_log_order_and_again_from_every_cursor(
    api: Api, pushed: str, work: WorkTree
) -> None:
    first = work.git("rev-parse", "HEAD~1").stdout.strip()
    with watching(api, repository=pushed) as call:
        start = next(call)
        assert start.WhichOneof("kind") == "progress"
        work.git("push", "--quiet", api.under_test.url(pushed), f"{first}:refs/heads/b")
        work.git("push", "--quiet", api.under_test.url(pushed), ":refs/heads/b")
        api.call(api.refs.SetHead, ref_pb2.SetHeadRequest(repository=pushed, oid=first))
        seen = [next_event(call) for _ in range(3)]
    kinds = [KIND.Name(message.event.kind) for message in seen]
    assert kinds == ["KIND_REFS_CHANGED", "KIND_REFS_CHANGED", "KIND_HEAD_CHANGED"]
    created, deleted = (message.event.ref_changes[0] for message in seen[:2])
    assert (created.name, created.old_oid, created.new_oid) == (b"refs/heads/b", "", first)
    assert (deleted.old_oid, deleted.new_oid) == (first, "")
    assert [m.event.index for m in seen] == sorted(m.event.index for m in seen)
    assert {(m.event.actor, m.event.path) for m in seen} == {("admin", pushed)}
    for position, cursor in enumerate([start.cursor, seen[0].cursor, seen[1].cursor]):
        with watching(api, repository=pushed, cursor=cursor) as call:
            again = [next_event(call) for _ in range(3 - position)]
        assert again == seen[position:]


def test_transaction_of_many_refs_comes_in_parts_and_resumes_inside(
    api: Api, pushed: str, work: WorkTree
) -> None:
    head = work.head()
    updates = [
        ref_pb2.RefUpdate(name=b"refs/x/%04d" % n, new_oid=head, expected_old_oid="")
        for n in range(2500)
    ]
    with watching(api, repository=pushed, ref_prefix=b"refs/x/") as call:
        next(call)
        api.call(api.refs.UpdateRefs, ref_pb2.UpdateRefsRequest(repository=pushed, updates=updates))
        parts = [next_event(call) for _ in range(3)]
    assert [len(p.event.ref_changes) for p in parts] == [1000, 1000, 500]
    assert [p.event.continued for p in parts] == [True, True, False]
    with watching(api, repository=pushed, cursor=parts[0].cursor) as call:
        assert next_event(call) == parts[1]


def test_beginning_has_the_first_push_and_deleted_repositories(api: Api, pushed: str) -> None:
    deleted = api.call(
        api.repositories.DeleteRepository, repository_pb2.DeleteRepositoryRequest(path=pushed)
    )
    kinds = []
    with watching(api, from_beginning=True) as call:
        for message in call:
            event = message.event
            if event.repository_id == deleted.repository_id:
                kinds.append(KIND.Name(event.kind))
                if event.kind == KIND.KIND_REPOSITORY_DELETED:
                    break
    assert kinds == ["KIND_REFS_CHANGED", "KIND_REPOSITORY_DELETED"]


@pytest.mark.parametrize(
    ("cursor", "code"),
    [
        (b"nonsense", "INVALID_ARGUMENT"),
        (b"\x02" + bytes(16), "INVALID_ARGUMENT"),
        (b"\x01" + b"\0\0\0\x01" + b"\x7f" * 8 + b"\xff" * 4, "OUT_OF_RANGE"),
    ],
)
def test_wrong_cursor_is_refused(api: Api, cursor: bytes, code: str) -> None:
    with pytest.raises(Refused) as caught, watching(api, cursor=cursor) as call:
        next(call)
    assert caught.value.code == code


def test_watchers_are_limited_and_their_places_come_back(api: Api) -> None:
    at_most = api.under_test.edge.config.api.watchers_max
    with contextlib.ExitStack() as stack:
        for _ in range(at_most):
            next(stack.enter_context(watching(api)))
        with pytest.raises(Refused) as caught, watching(api) as call:
            next(call)
        assert caught.value.code == "RESOURCE_EXHAUSTED"
        assert caught.value.info.metadata["limit"] == "api.watchers_max"


def test_watchers_are_counted_and_logged(
    api: Api, pushed: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "quorepo.rpc.grpc.event_service")
    metrics = api.under_test.edge.metrics

    def number(name: str) -> float:
        found = metrics.registry.get_sample_value(name)
        assert found is not None
        return found

    sent = number("quorepo_watch_events_total")
    with watching(api, repository=pushed, from_beginning=True) as call:
        next_event(call)
        assert number("quorepo_watchers") == 1
    eventually(lambda: number("quorepo_watchers") == 0, what="the watcher is gone")
    assert number("quorepo_watch_events_total") == sent + 1
    assert number("quorepo_watch_lag_entries") == 0
    lines = [(r.message, r.__dict__["fields"]["path"]) for r in caplog.records]
    assert lines == [("watch begins", pushed), ("watch ends", pushed)]

"""Request ids that carry their time: exactly once within the window, and never again after it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import pytest
from support.git import WorkTree
from support.grpc_api import Api

from quorepo.cluster.state.machine import REQUEST_WINDOW_MS
from quorepo.rpc.repositories import Origin
from quorepo.rpc.request_ids import made_at_ms, new_request_uuid
from quorepo.v1 import ref_pb2


@pytest.fixture
def late(api: Api) -> Iterator[None]:
    """The window is over for what was made before."""
    yield
    api.under_test.core.ahead_ms = 0


def test_an_id_tells_when_it_was_made() -> None:
    now_ms = time.time_ns() // 1_000_000
    made = new_request_uuid(now_ms)
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made_at_ms(made.bytes) == now_ms
    assert len({new_request_uuid(now_ms) for _ in range(1000)}) == 1000
    assert made_at_ms(uuid.uuid4().bytes) is None
    assert made_at_ms(b"short") is None


def test_a_repeat_is_first_seen_when_the_request_was_made() -> None:
    made = new_request_uuid(1_700_000_000_000)
    origin = Origin.new("a", made.bytes, lambda: 1_700_000_999_000)
    assert origin.first_seen_ms == 1_700_000_000_000
    assert origin.step("x").first_seen_ms == origin.first_seen_ms
    other = Origin.new("a", uuid.uuid4().bytes, lambda: 1_700_000_999_000)
    assert other.first_seen_ms == 1_700_000_999_000


def test_a_repeat_after_the_window_is_never_applied_again(
    api: Api, pushed: str, work: WorkTree, late: None
) -> None:
    first = work.git("rev-parse", "HEAD~1").stdout.strip()
    update = ref_pb2.RefUpdate(name=b"refs/heads/again", new_oid=first, any_old=True)
    request = ref_pb2.UpdateRefsRequest(
        request_id=str(new_request_uuid()), repository=pushed, updates=[update]
    )
    done = api.call(api.refs.UpdateRefs, request)
    assert api.call(api.refs.UpdateRefs, request).revision == done.revision
    moved = ref_pb2.RefUpdate(name=b"refs/heads/again", new_oid=work.head(), any_old=True)
    api.call(api.refs.UpdateRefs, ref_pb2.UpdateRefsRequest(repository=pushed, updates=[moved]))
    api.under_test.core.ahead_ms = REQUEST_WINDOW_MS + 60_000
    # An entry of the later time: what is older than the window is forgotten.
    api.refused(
        api.refs.UpdateRefs,
        ref_pb2.UpdateRefsRequest(
            repository=pushed,
            updates=[
                ref_pb2.RefUpdate(name=b"refs/heads/x", new_oid=first, expected_old_oid=first)
            ],
        ),
    )
    refusal = api.refused(api.refs.UpdateRefs, request)
    assert refusal.info.reason == "OUTCOME_UNKNOWN"
    assert refusal.info.metadata["request_id"] == request.request_id
    ref = api.call(
        api.refs.GetRef, ref_pb2.GetRefRequest(repository=pushed, name=b"refs/heads/again")
    )
    assert ref.ref.oid == work.head()

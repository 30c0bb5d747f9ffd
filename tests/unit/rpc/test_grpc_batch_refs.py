"""BatchUpdateRefs: many transactions in one call, each with an outcome of its own."""

from __future__ import annotations

import uuid
from typing import Any

from google.protobuf import any_pb2
from google.rpc import error_details_pb2
from support.git import WorkTree, refs_of
from support.grpc_api import Api

from quorepo.v1 import errors_pb2, ref_pb2


def one(path: str, name: str, new: str, expected: str = "", **fields: Any) -> Any:
    update = ref_pb2.RefUpdate(name=name.encode(), new_oid=new, expected_old_oid=expected)
    return ref_pb2.UpdateRefsRequest(repository=path, updates=[update], **fields)


def batch(api: Api, *requests: ref_pb2.UpdateRefsRequest) -> Any:
    message = ref_pb2.BatchUpdateRefsRequest(requests=requests)
    return api.call(api.refs.BatchUpdateRefs, message).items


def detail(item: ref_pb2.BatchUpdateRefsItem, kind: Any) -> Any:
    found = kind()
    packed: any_pb2.Any
    for packed in item.error.details:
        if packed.Unpack(found):
            return found
    raise AssertionError(f"no {kind.__name__} in {item.error}")


def reason(item: ref_pb2.BatchUpdateRefsItem) -> str:
    assert item.WhichOneof("outcome") == "error", item
    return str(detail(item, error_details_pb2.ErrorInfo).reason)


def test_each_transaction_has_its_own_outcome(api: Api, pushed: str, work: WorkTree) -> None:
    head, first = work.head(), work.git("rev-parse", "HEAD~1").stdout.strip()
    given = str(uuid.uuid4())
    done, stale, absent, missing, bad, moved = batch(
        api,
        one(pushed, "refs/heads/made", head, request_id=given),
        one(pushed, "refs/heads/main", first, expected=first),
        one("no/such", "refs/heads/x", head),
        one(pushed, "refs/heads/y", "1" * 40),
        one(pushed, "refs/heads/a..b", head),
        one(pushed, "refs/heads/other", first),
    )
    assert (done.request_id, done.WhichOneof("outcome")) == (given, "response")
    assert done.response.results[0].status == ref_pb2.REF_UPDATE_STATUS_OK
    assert moved.response.revision != done.response.revision
    assert reason(stale) == "REFERENCE_MISMATCH"
    (mismatch,) = detail(stale, errors_pb2.ReferenceMismatch).mismatches
    assert (mismatch.expected_oid, mismatch.actual_oid) == (first, head)
    told = detail(stale, error_details_pb2.ErrorInfo).metadata
    assert told["request_id"] == stale.request_id
    assert told["conclusion"] == "rejected"
    assert [reason(item) for item in (absent, missing, bad)] == [
        "NOT_FOUND",
        "NOT_FOUND",
        "INVALID_ARGUMENT",
    ]
    shown = refs_of(api.under_test.url(pushed))
    assert (shown["refs/heads/made"], shown["refs/heads/other"]) == (head, first)
    assert shown["refs/heads/main"] == head
    assert "refs/heads/y" not in shown


def test_a_repeated_batch_gets_its_first_answers(api: Api, pushed: str, work: WorkTree) -> None:
    requests = [
        one(pushed, f"refs/heads/n{number}", work.head(), request_id=str(uuid.uuid4()))
        for number in range(8)
    ]
    assert list(batch(api, *requests)) == list(batch(api, *requests))


def test_an_unknown_outcome_is_one_item_s(api: Api, pushed: str, work: WorkTree) -> None:
    api.under_test.core.answers_lost = 1
    requests = [one(pushed, f"refs/heads/u{number}", work.head()) for number in range(3)]
    items = batch(api, *requests)
    doubtful = [item for item in items if item.WhichOneof("outcome") == "error"]
    assert [reason(item) for item in doubtful] == ["OUTCOME_UNKNOWN"]
    again = requests[list(items).index(doubtful[0])]
    again.request_id = doubtful[0].request_id
    (answer,) = batch(api, again)
    assert answer.response.results[0].status == ref_pb2.REF_UPDATE_STATUS_OK


def test_a_batch_is_bounded_and_its_request_ids_differ(
    api: Api, pushed: str, work: WorkTree
) -> None:
    def refused(*requests: Any) -> Any:
        message = ref_pb2.BatchUpdateRefsRequest(requests=requests)
        return api.refused(api.refs.BatchUpdateRefs, message)

    assert refused().code == "INVALID_ARGUMENT"
    many = [one(pushed, f"refs/heads/m{number}", work.head()) for number in range(257)]
    error = refused(*many)
    assert error.detail(errors_pb2.LimitViolation).limit == "limits.batch_requests_max"
    wide = ref_pb2.UpdateRefsRequest(repository=pushed)
    for number in range(5001):
        wide.updates.add(name=b"refs/heads/w%d" % number, new_oid=work.head(), any_old=True)
    error = refused(wide, wide)
    assert error.detail(errors_pb2.LimitViolation).limit == "limits.refs_per_push_max"
    same = one(pushed, "refs/heads/same", work.head(), request_id=str(uuid.uuid4()))
    assert refused(same, same).code == "INVALID_ARGUMENT"
    shown = refs_of(api.under_test.url(pushed))
    assert {name for name in shown if name.startswith("refs/heads/")} == {"refs/heads/main"}

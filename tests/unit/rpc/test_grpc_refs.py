"""RefService: reading refs, and compare-and-swap with typed answers."""

from __future__ import annotations

import uuid
from typing import Any

from support.git import WorkTree, refs_of
from support.grpc_api import Api, Refused

from quorepo.v1 import common_pb2, errors_pb2, ref_pb2

ZERO = "0" * 40


def update(
    name: str, new: str, expected: str | None = None, *, any_old: bool = False
) -> ref_pb2.RefUpdate:
    if any_old:
        return ref_pb2.RefUpdate(name=name.encode(), new_oid=new, any_old=True)
    if expected is None:
        return ref_pb2.RefUpdate(name=name.encode(), new_oid=new)
    return ref_pb2.RefUpdate(name=name.encode(), new_oid=new, expected_old_oid=expected)


def request(path: str, *updates: ref_pb2.RefUpdate, **fields: Any) -> ref_pb2.UpdateRefsRequest:
    return ref_pb2.UpdateRefsRequest(repository=path, updates=updates, **fields)


def refused(api: Api, path: str, *updates: ref_pb2.RefUpdate) -> Refused:
    return api.refused(api.refs.UpdateRefs, request(path, *updates))


def test_refs_are_listed_in_order_with_tags_peeled(api: Api, pushed: str, work: WorkTree) -> None:
    listed = api.call(api.refs.ListRefs, ref_pb2.ListRefsRequest(repository=pushed))
    assert [ref.name for ref in listed.refs] == [b"refs/heads/main", b"refs/tags/v1"]
    assert listed.refs[0].oid == work.head()
    assert listed.refs[0].peeled_oid == ""
    assert listed.refs[1].peeled_oid == work.git("rev-parse", "v1^{commit}").stdout.strip()
    assert listed.head == b"refs/heads/main"
    head = api.call(api.refs.GetRef, ref_pb2.GetRefRequest(repository=pushed, name=b"HEAD"))
    assert (head.ref.name, head.ref.symbolic_target) == (b"HEAD", b"refs/heads/main")
    assert head.ref.oid == work.head()
    absent = api.refused(
        api.refs.GetRef, ref_pb2.GetRefRequest(repository=pushed, name=b"refs/heads/\xff")
    )
    assert absent.code == "NOT_FOUND"


def test_pages_stay_stable_while_refs_are_written(api: Api, pushed: str, work: WorkTree) -> None:
    head = work.head()
    names = [f"refs/heads/p/{letter}" for letter in "bdfh"]
    api.call(api.refs.UpdateRefs, request(pushed, *(update(name, head, "") for name in names)))
    listing = ref_pb2.ListRefsRequest(repository=pushed, prefix=b"refs/heads/p/", page_size=2)
    first = api.call(api.refs.ListRefs, listing)
    changes = (update("refs/heads/p/a", head, ""), update("refs/heads/p/b", "", head))
    api.call(api.refs.UpdateRefs, request(pushed, *changes))
    listing.page_token = first.next_page_token
    second = api.call(api.refs.ListRefs, listing)
    assert [r.name.decode() for r in [*first.refs, *second.refs]] == names
    assert second.next_page_token == ""


def test_refs_are_created_moved_and_deleted_in_one_transaction(
    api: Api, pushed: str, work: WorkTree
) -> None:
    head, first = work.head(), work.git("rev-parse", "HEAD~1").stdout.strip()
    api.call(api.refs.UpdateRefs, request(pushed, update("refs/heads/old", first, ZERO)))
    answer = api.call(
        api.refs.UpdateRefs,
        request(
            pushed,
            update("refs/heads/new", head, ""),
            update("refs/heads/main", first, head),
            update("refs/heads/old", "", first),
        ),
    )
    assert [result.status for result in answer.results] == [ref_pb2.REF_UPDATE_STATUS_OK] * 3
    shown = refs_of(api.under_test.url(pushed))
    assert shown["refs/heads/new"] == head
    assert shown["refs/heads/main"] == first
    assert "refs/heads/old" not in shown
    read = api.call(
        api.refs.GetRef,
        ref_pb2.GetRefRequest(
            repository=pushed,
            name=b"refs/heads/new",
            consistency=common_pb2.Consistency(at_least=answer.revision),
        ),
    )
    assert read.revision == answer.revision


def test_a_stale_value_changes_nothing_and_says_what_is_there(
    api: Api, pushed: str, work: WorkTree
) -> None:
    head, first = work.head(), work.git("rev-parse", "HEAD~1").stdout.strip()
    error = refused(
        api, pushed, update("refs/heads/x", head, ""), update("refs/heads/main", first, first)
    )
    assert (error.code, error.info.reason) == ("ABORTED", "REFERENCE_MISMATCH")
    (mismatch,) = error.detail(errors_pb2.ReferenceMismatch).mismatches
    assert mismatch.name == b"refs/heads/main"
    assert (mismatch.expected_oid, mismatch.actual_oid) == (first, head)
    assert uuid.UUID(error.info.metadata["request_id"])
    assert "refs/heads/x" not in refs_of(api.under_test.url(pushed))


def test_many_mismatches_fit_into_one_answer(api: Api, pushed: str, work: WorkTree) -> None:
    head = work.head()
    updates = [update(f"refs/heads/none/{n:04}", head, head) for n in range(2000)]
    error = refused(api, pushed, *updates)
    assert error.code == "ABORTED"
    assert "and 1999 more" in error.text
    assert 1 <= len(error.detail(errors_pb2.ReferenceMismatch).mismatches) < 2000


def test_a_partial_update_tells_each_ref_by_itself(api: Api, pushed: str, work: WorkTree) -> None:
    head, first = work.head(), work.git("rev-parse", "HEAD~1").stdout.strip()
    answer = api.call(
        api.refs.UpdateRefs,
        request(
            pushed,
            update("refs/heads/fine", head, ""),
            update("refs/heads/main", first, first),
            update("refs/heads/main/below", head, ""),
            allow_partial=True,
        ),
    )
    assert [result.status for result in answer.results] == [
        ref_pb2.REF_UPDATE_STATUS_OK,
        ref_pb2.REF_UPDATE_STATUS_STALE,
        ref_pb2.REF_UPDATE_STATUS_NAME_CONFLICT,
    ]
    assert answer.results[1].actual_old_oid == head
    assert answer.results[2].conflicting_name == b"refs/heads/main"


def test_a_repeated_request_gets_its_first_answer(api: Api, pushed: str, work: WorkTree) -> None:
    head = work.head()
    asked = request(pushed, update("refs/heads/once", head, ""), request_id=str(uuid.uuid4()))
    first = api.call(api.refs.UpdateRefs, asked)
    api.call(api.refs.UpdateRefs, request(pushed, update("refs/heads/once", "", head)))
    assert api.call(api.refs.UpdateRefs, asked) == first
    assert "refs/heads/once" not in refs_of(api.under_test.url(pushed))


def test_an_unknown_outcome_has_its_own_reason_and_can_be_asked_again(
    api: Api, pushed: str, work: WorkTree
) -> None:
    api.under_test.core.answers_lost = 1
    error = refused(api, pushed, update("refs/heads/maybe", work.head(), ""))
    assert error.info.reason == "OUTCOME_UNKNOWN"
    assert error.info.metadata["conclusion"] == "unknown"
    again = request(
        pushed,
        update("refs/heads/maybe", work.head(), ""),
        request_id=error.info.metadata["request_id"],
    )
    answer = api.call(api.refs.UpdateRefs, again)
    assert answer.results[0].status == ref_pb2.REF_UPDATE_STATUS_OK


def test_bad_updates_are_refused_before_they_are_proposed(
    api: Api, pushed: str, work: WorkTree
) -> None:
    head = work.head()
    tree = work.git("rev-parse", "HEAD^{tree}").stdout.strip()
    proposed = len(api.under_test.core.commands)
    for updates, code, text in [
        ([], "INVALID_ARGUMENT", "must not be empty"),
        ([update("refs/heads/x", head)], "INVALID_ARGUMENT", "needs expected_old_oid"),
        ([update("refs/heads/a..b", head, "")], "INVALID_ARGUMENT", "a..b"),
        ([update("HEAD", head, "")], "INVALID_ARGUMENT", "refs/"),
        ([update("refs/heads/x", "abc", "")], "INVALID_ARGUMENT", "40 hex digits"),
        ([update("refs/heads/x", "z" * 40, "")], "INVALID_ARGUMENT", "40 hex digits"),
        ([update("refs/heads/x", "1" * 40, "")], "NOT_FOUND", "is not in"),
        ([update("refs/heads/x", tree, "")], "INVALID_ARGUMENT", "must point to a commit"),
        ([update("refs/heads/x", head, "")] * 2, "INVALID_ARGUMENT", "twice"),
        ([update("refs/heads/" + "x" * 2000, head, "")], "RESOURCE_EXHAUSTED", "ref_name_bytes"),
    ]:
        error = refused(api, pushed, *updates)
        assert error.code == code, error
        assert text in error.text
    too_many = [update(f"refs/heads/{n}", head, "") for n in range(10_001)]
    error = refused(api, pushed, *too_many)
    assert (error.code, error.info.metadata["limit"]) == (
        "RESOURCE_EXHAUSTED",
        "limits.refs_per_push_max",
    )
    assert len(api.under_test.core.commands) == proposed
    assert refused(api, "no/such", update("refs/heads/x", head, "")).code == "NOT_FOUND"


def test_a_name_conflict_is_typed(api: Api, pushed: str, work: WorkTree) -> None:
    error = refused(api, pushed, update("refs/heads/main/below", work.head(), ""))
    assert (error.code, error.info.reason) == ("FAILED_PRECONDITION", "REFERENCE_NAME_CONFLICT")
    detail = error.detail(errors_pb2.ReferenceNameConflict)
    assert detail.conflicting_name == b"refs/heads/main"


def test_any_old_value_may_be_overwritten(api: Api, pushed: str, work: WorkTree) -> None:
    first = work.git("rev-parse", "HEAD~1").stdout.strip()
    api.call(api.refs.UpdateRefs, request(pushed, update("refs/heads/main", first, any_old=True)))
    assert refs_of(api.under_test.url(pushed))["refs/heads/main"] == first

"""Bad input of every method of every service: a precise error each, and nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.rpc import status_pb2
from support.api_methods import REVISIONS as REVISIONS_OF_READS
from support.api_methods import good, reads
from support.api_writes import all_methods, call_any, good_writes
from support.git import WorkTree
from support.grpc_api import Api, Refused, push_history, serving_api

from quorepo.v1 import ref_pb2, repository_pb2

PATH = "team/every-method"
MAX_BYTES = 4 * 1024 * 1024
METHODS = {method.name: method for method in all_methods()}
READS = {method.name: method for method in reads()}
WRITES = sorted(good_writes("", ""))
UNKNOWN_OID = "1" * 40
PLACES = ("repository", "path", "new_path")
BAD_PLACES = ["../up", "/../etc", "a/./b", "a//b", "a/../b", "x" * 5000, "nul\0", "a.git/b"]
NAMES = ("branch", "tag", "names", "name", "default_branch")
BAD_NAMES = [b"a..b", b"\xff\x00", b"/x", b"a b", b"a.lock", b"x" * 70_000, b"refs/heads/.a",
             b"refs/heads/\x7f", b"../../config"]  # fmt: skip
REVISIONS = ("start", "target", "source", "commit", "onto", "upstream")
BAD_REVISIONS = [UNKNOWN_OID.encode(), b"\x00", b"refs/heads/\xff", b"main^{nonsense}", b"../main",
                 b"x" * 100_000]  # fmt: skip
OIDS = ("oid", "new_oid", "expected_old_oid", "expected_oid")
BAD_OIDS = ["zz", "1" * 39, "é" * 40, "x" * 100_000]
PEOPLE = ("author", "committer", "tagger")
NOTHING_IS_CHANGED = ("MergeCheck", "UploadPack")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> WorkTree:
    return WorkTree(tmp_path_factory.mktemp("every") / "work")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, work: WorkTree) -> Iterator[Api]:
    with serving_api(tmp_path_factory.mktemp("node") / "data") as api:
        push_history(api, work, PATH)
        work.git("push", "--quiet", api.under_test.url(PATH), "v1^{}:refs/heads/other")
        yield api


@pytest.fixture(autouse=True)
def _nothing_is_written(api: Api) -> Iterator[None]:
    before = world(api)
    yield
    api.under_test.settle()
    assert world(api) == before
    assert api.under_test.uploads() == []


def world(api: Api) -> list[Any]:
    """Everything that a call could have changed."""
    pb = repository_pb2
    return [
        api.call(api.repositories.ListRepositories, pb.ListRepositoriesRequest()),
        api.call(api.repositories.ListDeletedRepositories, pb.ListDeletedRepositoriesRequest()),
        api.call(api.refs.ListRefs, ref_pb2.ListRefsRequest(repository=PATH)),
    ]


def test_every_method_that_changes_something_is_among_these() -> None:
    known = {name for name in METHODS if METHODS[name].containing_service.name != "ClusterService"}
    others = {"Watch", "GetOperation", "ListOperations", "WaitOperation", "CancelOperation"}
    assert known == set(WRITES) | set(READS) | others


@pytest.fixture
def request_(api: Api, work: WorkTree, name: str) -> Any:
    if name in READS:
        return good(READS[name], PATH)
    return good_writes(PATH, work.head())[name]


def spoiled(message: Any, names: tuple[str, ...], bad: Any) -> Iterator[None]:
    """One of the fields is `bad` while the caller has it, in nested messages too."""
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None and field.message_type.name != "Signature":
            inner = getattr(message, field.name)
            single = [inner] if not field.is_repeated and message.HasField(field.name) else []
            for one in inner if field.is_repeated else single:
                yield from spoiled(one, names, bad)
        if field.name not in names or isinstance(bad, bytes) != (
            field.type == FieldDescriptor.TYPE_BYTES
        ):
            continue
        if isinstance(bad, str) and field.type != FieldDescriptor.TYPE_STRING:
            continue
        before = type(message)()
        before.CopyFrom(message)
        if field.is_repeated:
            getattr(message, field.name).append(bad)
        else:
            setattr(message, field.name, bad)
        yield
        message.CopyFrom(before)


def refused(api: Api, name: str, request: Any) -> Refused:
    """The refusal, which says what and why, and that nothing happened."""
    if name == "BatchUpdateRefs" and not isinstance(
        request, bytes
    ):  # its one transaction has an outcome of its own
        (answer,) = call_any(api, METHODS[name], request)
        (item,) = ref_pb2.BatchUpdateRefsResponse.FromString(answer).items
        error = Refused.of_status(
            status_pb2.Status(
                code=item.error.code, message=item.error.message, details=item.error.details
            )
        )
    else:
        with pytest.raises(Refused) as caught:
            call_any(api, METHODS[name], request)
        error = caught.value
    assert error.info.domain == "quorepo"
    assert error.info.reason not in ("", "INTERNAL")
    assert error.info.metadata["conclusion"] == "rejected"
    assert len(error.text) < 1000, "what was sent does not come back as a whole"
    return error


BAD_INPUT = ("INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED")


@pytest.mark.parametrize("name", WRITES)
def test_places_outside_the_namespace(api: Api, name: str, request_: Any) -> None:
    for bad in BAD_PLACES:
        for _ in spoiled(request_, PLACES, bad):
            assert refused(api, name, request_).code in ("INVALID_ARGUMENT", "NOT_FOUND")


@pytest.mark.parametrize("name", WRITES)
def test_names_that_git_would_refuse(api: Api, name: str, request_: Any) -> None:
    for bad in BAD_NAMES:
        for _ in spoiled(request_, NAMES, bad):
            assert refused(api, name, request_).code in BAD_INPUT


@pytest.mark.parametrize("name", WRITES)
def test_revisions_and_ids_of_nothing(api: Api, name: str, request_: Any) -> None:
    for bad in BAD_REVISIONS:
        for _ in spoiled(request_, REVISIONS, bad):
            assert refused(api, name, request_).code in BAD_INPUT
    for text in BAD_OIDS:
        for _ in spoiled(request_, OIDS, text):
            assert refused(api, name, request_).code in BAD_INPUT
    for _ in spoiled(request_, ("oid", "new_oid"), UNKNOWN_OID):
        assert refused(api, name, request_).code in BAD_INPUT


@pytest.mark.parametrize("name", WRITES)
def test_objects_of_a_wrong_type(api: Api, name: str, request_: Any, work: WorkTree) -> None:
    """Where a commit is meant: a blob, a tree. A tag may point to anything."""
    for what in ("main:README", "main^{tree}"):
        oid = work.git("rev-parse", what).stdout.strip()
        for _ in spoiled(request_, REVISIONS, oid.encode()):
            if name != "CreateTag":
                assert refused(api, name, request_).code == "INVALID_ARGUMENT"
        for _ in spoiled(request_, ("oid", "new_oid"), oid):
            assert refused(api, name, request_).code == "INVALID_ARGUMENT"


@pytest.mark.parametrize("name", WRITES)
def test_request_ids_people_and_expectations_that_are_none(
    api: Api, name: str, request_: Any
) -> None:
    for _ in spoiled(request_, ("request_id",), "no-uuid"):
        assert refused(api, name, request_).code == "INVALID_ARGUMENT"
    for field in request_.DESCRIPTOR.fields:
        if field.name in PEOPLE and request_.HasField(field.name):
            for bad in (b"", b"a<b", b"a\nb", b"\0"):
                person = getattr(request_, field.name)
                kept = person.name
                person.name = bad
                assert refused(api, name, request_).code == "INVALID_ARGUMENT"
                person.name = kept
        if field.name == "expected":
            for oid in BAD_OIDS:
                request_.expected.oid = oid
                assert refused(api, name, request_).code in BAD_INPUT
            if name == "CommitFiles":  # only its header is sent here
                continue
            request_.expected.oid = UNKNOWN_OID
            assert refused(api, name, request_).code == "ABORTED"


@pytest.mark.parametrize("name", sorted({*WRITES, *READS}))
def test_values_that_no_enumeration_has(api: Api, name: str, request_: Any) -> None:
    for field in request_.DESCRIPTOR.fields:
        if field.enum_type is not None and not field.is_repeated:
            setattr(request_, field.name, 99)
            assert refused(api, name, request_).code == "INVALID_ARGUMENT"
            request_.ClearField(field.name)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"Watch", "ListRepositories"}))
def test_an_empty_request_is_answered_or_refused_with_a_reason(api: Api, name: str) -> None:
    method = METHODS[name]
    if method.containing_service.name == "ClusterService":
        return  # tests/system/test_membership_refusals.py
    if method.client_streaming:
        assert refused(api, name, b"").code == "INVALID_ARGUMENT"
    elif method.name not in ("ListDeletedRepositories", "ListOperations", "CreateRepository"):
        assert refused(api, name, b"").code in BAD_INPUT


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_message_above_four_mebibytes(api: Api, name: str) -> None:
    """Refused before it is read as anything, whatever is in it."""
    padding = b"\xfa\x7f" + b"\x80\x80\x80\x02" + bytes(MAX_BYTES)  # a field that nobody knows
    with pytest.raises(Refused) as caught:
        call_any(api, METHODS[name], padding)
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    assert "larger than max" in caught.value.text


@pytest.mark.parametrize("name", sorted(METHODS))
def test_bytes_that_are_no_message(api: Api, name: str) -> None:
    error = refused(api, name, b"\xff\xff\xff")
    assert error.code == "INVALID_ARGUMENT"
    assert "is no" in error.text


# Of many repositories, or of none: what each of them lists has a revision of its own, or none.
WITHOUT_REVISION = {
    *("BatchUpdateRefs", "ListDeletedRepositories", "ListRepositories", "ImportRepository"),
    *("GetOperation", "ListOperations", "WaitOperation", "CancelOperation"),
}
GITS_OWN = {"UploadPack", "ReceivePack"}  # git's protocol knows no revision


def test_every_answer_carries_the_revision_and_every_read_takes_a_consistency() -> None:
    """By the descriptors, so a new method can't do without."""
    for name, method in METHODS.items():
        if method.containing_service.name == "ClusterService" or name in GITS_OWN:
            continue
        assert ("revision" in first_part(method.output_type)) != (name in WITHOUT_REVISION), name
        writes = "request_id" in first_part(method.input_type) or name == "BatchUpdateRefs"
        of_operations = name.endswith(("Operation", "Operations")) or name == "Watch"
        assert writes != (name in READS or name == "MergeCheck" or of_operations), name


def first_part(message: Any) -> set[str]:
    """The fields of a message, of its header, and of an event, with those of what it lists."""
    fields = dict(message.fields_by_name)
    for inner in ("header", "event"):
        if inner in fields:
            fields.update(fields[inner].message_type.fields_by_name)
    return set(fields)


ANY_OBJECT = {"CheckObjectsExist", "ListRefs"}  # ListRefs: pointing_at


@pytest.mark.parametrize("name", sorted(READS))
def test_objects_of_a_wrong_type_are_no_answer_to_a_read(
    api: Api, name: str, request_: Any, work: WorkTree
) -> None:
    """A blob where a commit or a folder is meant; a commit or a folder where a blob is."""
    commit, blob = (work.git("rev-parse", w).stdout.strip() for w in ("main", "main:README"))
    tree = work.git("rev-parse", "main^{tree}").stdout.strip()
    for _ in spoiled(request_, (*REVISIONS_OF_READS,), blob.encode()):
        if name not in ANY_OBJECT:
            assert refused(api, name, request_).code == "INVALID_ARGUMENT"
    for oid in (commit, tree):
        for _ in spoiled(request_, ("oid",), oid):
            if name != "BatchGetBlobs":  # says "missing" of each
                assert refused(api, name, request_).code == "INVALID_ARGUMENT"

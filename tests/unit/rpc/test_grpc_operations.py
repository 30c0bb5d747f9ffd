"""OperationService: commits that git agrees with, made once, and refusals that leave nothing."""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from support.edge import TOKEN
from support.git import WorkTree, git, refs_of
from support.grpc_api import Api, Refused
from support.waiting import eventually

from quorepo.rpc.grpc.interceptor import WRITING_METHODS
from quorepo.v1 import commit_pb2, errors_pb2, operation_pb2, repository_pb2

PB = operation_pb2
REQUEST = PB.CommitFilesRequest
ADA = commit_pb2.Signature(name=b"Ada", email=b"ada@example.org")
ADA.time.seconds = 1_700_000_000
ADA.utc_offset_minutes = -90


def action(kind: str, path: str | bytes, content: bytes = b"", **fields: Any) -> REQUEST.Action:
    return REQUEST.Action(
        kind=REQUEST.Kind.Value(f"KIND_{kind}"),
        path=path.encode() if isinstance(path, str) else path,
        content=content,
        **fields,
    )


def messages(
    header: REQUEST.Header, *parts: REQUEST.Action | bytes, cut: bool = False
) -> Iterator[REQUEST]:
    digest = hashlib.sha256()
    yield REQUEST(header=header)
    for part in parts:
        if isinstance(part, bytes):
            yield REQUEST(chunk=part)
        else:
            yield REQUEST(action=part)
        digest.update(part if isinstance(part, bytes) else part.content)
    if not cut:
        yield REQUEST(sha256=digest.digest())


def header(path: str, branch: str = "main", **fields: Any) -> REQUEST.Header:
    fields = {"message": b"made by the server", "author": ADA, **fields}
    return REQUEST.Header(repository=path, branch=branch.encode(), **fields)


def commit(api: Api, head: REQUEST.Header, *parts: Any, cut: bool = False) -> Any:
    return api.call(api.operations.CommitFiles, messages(head, *parts, cut=cut))


def refused(api: Api, head: REQUEST.Header, *parts: Any, cut: bool = False) -> Refused:
    with pytest.raises(Refused) as caught:
        commit(api, head, *parts, cut=cut)
    return caught.value


def fetched(work: WorkTree, api: Api, path: str) -> None:
    work.git("fetch", "--quiet", api.under_test.url(path), "+refs/*:refs/remotes/o/*")
    work.git("fsck", "--strict", "--no-dangling")


def test_commit_has_the_ids_that_git_gives_the_same_files(
    api: Api, pushed: str, work: WorkTree
) -> None:
    big = bytes(range(256)) * 1024
    answer = commit(
        api,
        header(pushed),
        action("CREATE", "new/deep/file", b"one\n"),
        action("UPDATE", "README", b"bet"),
        b"ter\n",
        action("WRITE", "big"),
        big,
        big,
        action("DELETE", "src/sub"),
        action("MOVE", "moved/a.txt", previous_path=b"src/a.txt"),
        action("CHMOD", "src/b.txt", mode=0o100755),
        action("CREATE", "link", b"README", mode=0o120000),
    )
    (work.path / "new/deep").mkdir(parents=True)
    (work.path / "moved").mkdir()
    (work.path / "new/deep/file").write_bytes(b"one\n")
    (work.path / "README").write_bytes(b"better\n")
    (work.path / "big").write_bytes(big * 2)
    work.git("rm", "-rq", "src/sub")
    work.git("mv", "src/a.txt", "moved/a.txt")
    (work.path / "src/b.txt").chmod(0o755)
    (work.path / "link").symlink_to("README")
    work.git("add", "--all")
    tree = work.git("write-tree").stdout.strip()
    assert answer.tree_oid == tree
    assert not answer.branch_created
    parent = work.head()
    fetched(work, api, pushed)
    raw = work.git("cat-file", "commit", answer.commit_oid).stdout
    assert raw == (
        f"tree {tree}\nparent {parent}\nauthor Ada <ada@example.org> 1700000000 -0130\n"
        "committer Ada <ada@example.org> 1700000000 -0130\n\nmade by the server\n"
    )
    assert refs_of(api.under_test.url(pushed))["refs/heads/main"] == answer.commit_oid


def test_commit_into_an_empty_repository_and_of_sha256(api: Api, path: str) -> None:
    for number, expected in ((1, 40), (2, 64)):
        name = f"{path}-{number}"
        api.call(
            api.repositories.CreateRepository,
            repository_pb2.CreateRepositoryRequest(path=name, object_format=number),  # type: ignore[arg-type]
        )
        answer = commit(api, header(name), action("CREATE", "a", b"a\n"))
        assert len(answer.commit_oid) == expected
        assert answer.branch_created
        url = api.under_test.url(name)
        assert git("ls-remote", url, "refs/heads/main").stdout.startswith(answer.commit_oid)


def test_repeated_request_makes_no_second_commit(api: Api, pushed: str, work: WorkTree) -> None:
    head = header(pushed, request_id=str(uuid.uuid4()))
    first = commit(api, head, action("WRITE", "once", b"1"))
    commit(api, header(pushed), action("WRITE", "between", b"2"))
    head.author.time.seconds += 5
    again = commit(api, head, action("WRITE", "once", b"other"))
    assert again == first
    fetched(work, api, pushed)
    log = work.git("log", "--format=%H", "refs/remotes/o/heads/main").stdout.split()
    assert len(log) == len(set(log)) == 4


def test_lost_answer_is_given_to_the_repeated_request(
    api: Api, pushed: str, work: WorkTree
) -> None:
    head = header(pushed, request_id=str(uuid.uuid4()))
    api.under_test.core.answers_lost = 1
    error = refused(api, head, action("WRITE", "once", b"1"))
    assert error.info.reason == "OUTCOME_UNKNOWN"
    again = commit(api, head, action("WRITE", "once", b"1"))
    assert refs_of(api.under_test.url(pushed))["refs/heads/main"] == again.commit_oid


def test_expected_value_that_is_not_there_changes_nothing(
    api: Api, pushed: str, work: WorkTree
) -> None:
    for expected in ("1" * 40, ""):
        head = header(pushed, expected=PB.BranchExpectation(oid=expected))
        error = refused(api, head, action("WRITE", "a", b"a"))
        assert (error.code, error.info.reason) == ("ABORTED", "REFERENCE_MISMATCH")
        (mismatch,) = error.detail(errors_pb2.ReferenceMismatch).mismatches
        assert mismatch.actual_oid == work.head()
    assert refs_of(api.under_test.url(pushed))["refs/heads/main"] == work.head()
    head = header(pushed, expected=PB.BranchExpectation(oid=work.head()))
    commit(api, head, action("WRITE", "a", b"a"))


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (action("WRITE", "/absolute", b"x"), "INVALID_ARGUMENT"),
        (action("WRITE", "a/../b", b"x"), "INVALID_ARGUMENT"),
        (action("WRITE", "a//b", b"x"), "INVALID_ARGUMENT"),
        (action("WRITE", "", b"x"), "INVALID_ARGUMENT"),
        (action("WRITE", ".git/config", b"x"), "INVALID_ARGUMENT"),
        (action("WRITE", "a/.GIT/config", b"x"), "INVALID_ARGUMENT"),
        (action("WRITE", "git~1", b"x"), "INVALID_ARGUMENT"),
        (action("WRITE", ".g\u200cit", b"x"), "INVALID_ARGUMENT"),
        (action("WRITE", b"nul\0", b"x"), "INVALID_ARGUMENT"),
        (action("WRITE", "mode", b"x", mode=0o40000), "INVALID_ARGUMENT"),
        (action("DELETE", "README", b"x"), "INVALID_ARGUMENT"),
        (action("UNSPECIFIED", "README"), "INVALID_ARGUMENT"),
        (action("MOVE", "README"), "INVALID_ARGUMENT"),
        (action("CREATE", "README", b"x"), "ALREADY_EXISTS"),
        (action("MOVE", "README", previous_path=b"src/a.txt"), "ALREADY_EXISTS"),
        (action("UPDATE", "none", b"x"), "NOT_FOUND"),
        (action("DELETE", "none"), "NOT_FOUND"),
        (action("WRITE", "README/below", b"x"), "FAILED_PRECONDITION"),
        (action("WRITE", "src", b"x"), "FAILED_PRECONDITION"),
        (action("WRITE", "README", b"x", expected_oid="1" * 40), "FAILED_PRECONDITION"),
        (action("WRITE", "README", b"x", expected_oid="12"), "INVALID_ARGUMENT"),
        (action("WRITE", "README", b"hello\n"), "FAILED_PRECONDITION"),
    ],
)  # fmt: skip
def test_wrong_action_is_named_and_leaves_nothing(
    api: Api, pushed: str, work: WorkTree, wrong: Any, code: str
) -> None:
    before = api.under_test.edge.reads.layout(1).quarantine
    error = refused(api, header(pushed), wrong)
    assert error.code == code, error.text
    assert refs_of(api.under_test.url(pushed))["refs/heads/main"] == work.head()
    assert api.under_test.uploads() == []
    assert list(before.glob("*.pack")) == []


def test_wrong_streams_leave_nothing(api: Api, pushed: str, work: WorkTree) -> None:
    first = action("WRITE", "a", b"a")
    assert "cut" in refused(api, header(pushed), first, cut=True).text
    for stream in (
        [REQUEST(action=first)],
        [REQUEST(header=header(pushed)), REQUEST(chunk=b"x"), REQUEST(sha256=b"")],
        [REQUEST(header=header(pushed)), REQUEST(action=first), REQUEST(sha256=b"1" * 32)],
        [REQUEST(header=header(pushed)), REQUEST(header=header(pushed))],
        [REQUEST(header=header(pushed)), REQUEST()],
        [],
    ):
        error = api.refused(api.operations.CommitFiles, iter(stream))
        assert error.code == "INVALID_ARGUMENT"
    for wrong in (
        header(pushed, branch="a..b"),
        header(pushed, branch="refs/tags/x"),
        header(pushed, author=commit_pb2.Signature(name=b"A<", email=b"a")),
        header(pushed, author=commit_pb2.Signature(name=b"", email=b"a")),
        header(pushed, message=b"a\0b"),
    ):
        assert refused(api, wrong, first).code == "INVALID_ARGUMENT"
    assert api.under_test.uploads() == []
    assert refs_of(api.under_test.url(pushed))["refs/heads/main"] == work.head()


def test_cancelled_stream_leaves_nothing(api: Api, pushed: str) -> None:
    def endless() -> Iterator[REQUEST]:
        yield REQUEST(header=header(pushed))
        yield REQUEST(action=action("WRITE", "a"))
        while True:
            yield REQUEST(chunk=b"x" * 1000)

    metadata = (("authorization", f"Bearer {TOKEN}"),)
    call = api.operations.CommitFiles.future(endless(), timeout=0.5, metadata=metadata)
    with pytest.raises(grpc.RpcError):
        call.result()
    api.under_test.settle()
    eventually(lambda: api.under_test.uploads() == [], what="the upload is gone")


def test_branches_and_tags_are_made_and_deleted(api: Api, pushed: str, work: WorkTree) -> None:
    operations = api.operations
    made = api.call(operations.CreateBranch, PB.CreateBranchRequest(
        repository=pushed, branch=b"topic", start=b"main", request_id=str(uuid.uuid4())
    ))  # fmt: skip
    assert made.oid == work.head()
    again = PB.CreateBranchRequest(repository=pushed, branch=b"topic", start=b"main")
    assert api.refused(operations.CreateBranch, again).code == "ABORTED"
    below = PB.CreateBranchRequest(repository=pushed, branch=b"topic/x", start=b"main")
    assert api.refused(operations.CreateBranch, below).info.reason == "REFERENCE_NAME_CONFLICT"
    light = PB.CreateTagRequest(repository=pushed, tag=b"light", target=b"topic")
    assert api.call(operations.CreateTag, light).oid == work.head()
    annotated = PB.CreateTagRequest(
        request_id=str(uuid.uuid4()), repository=pushed, tag=b"v2", target=b"main",
        message=b"two", tagger=ADA,
    )  # fmt: skip
    tag = api.call(operations.CreateTag, annotated)
    assert api.call(operations.CreateTag, annotated) == tag
    work.git("fetch", "--quiet", api.under_test.url(pushed), "refs/tags/v2:refs/tags/v2")
    assert work.git("cat-file", "tag", "v2").stdout == (
        f"object {work.head()}\ntype commit\ntag v2\n"
        "tagger Ada <ada@example.org> 1700000000 -0130\n\ntwo\n"
    )
    for name in (b"light", b"v2"):
        request = PB.DeleteTagRequest(repository=pushed, tag=name)
        api.call(operations.DeleteTag, request)
        assert api.refused(operations.DeleteTag, request).code == "NOT_FOUND"
    wrong = PB.DeleteBranchRequest(
        repository=pushed, branch=b"topic", expected=PB.BranchExpectation(oid="1" * 40)
    )
    assert api.refused(operations.DeleteBranch, wrong).code == "ABORTED"
    gone = api.call(
        operations.DeleteBranch, PB.DeleteBranchRequest(repository=pushed, branch=b"topic")
    )
    assert gone.oid == work.head()
    default = PB.DeleteBranchRequest(repository=pushed, branch=b"main")
    assert api.refused(operations.DeleteBranch, default).code == "FAILED_PRECONDITION"


def test_each_call_is_counted_by_its_outcome_and_logged(
    api: Api, pushed: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "quorepo.rpc.grpc.operation_record")

    def count(operation: str, outcome: str) -> float:
        labels = {"operation": operation, "outcome": outcome}
        registry = api.under_test.edge.metrics.registry
        return registry.get_sample_value("quorepo_operations_total", labels) or 0

    before = {kind: count("CommitFiles", kind) for kind in ("ok", "refused", "unknown")}
    head = header(pushed, request_id=str(uuid.uuid4()))
    api.under_test.core.answers_lost = 1
    refused(api, head, action("WRITE", "once", b"1"))
    commit(api, head, action("WRITE", "once", b"1"))
    refused(api, header(pushed), action("WRITE", "/absolute", b"x"))
    assert {kind: count("CommitFiles", kind) for kind in before} == {
        kind: number + 1 for kind, number in before.items()
    }
    shown = [record.__dict__["fields"] for record in caplog.records]
    assert [line["outcome"] for line in shown] == ["unknown", "ok", "refused"]
    assert {(line["operation"], line["path"], line["user"]) for line in shown} == {
        ("CommitFiles", pushed, "admin")
    }
    assert shown[0]["request"] == shown[1]["request"] == head.request_id


def test_a_drained_node_takes_no_write_and_answers_reads(
    api: Api, pushed: str, work: WorkTree
) -> None:
    slots = api.under_test.edge.push_slots
    api.under_test.core.draining = True
    try:
        eventually(lambda: slots.drained, timeout_s=60, what="the edge knows")
        for name in sorted(WRITING_METHODS):
            # The wire is the same for a request and for a stream of one.
            method = api.channel.unary_unary(name, bytes, bytes)
            error = api.refused(method, b"")
            assert (error.code, error.info.reason) == ("UNAVAILABLE", "UNAVAILABLE"), name
            assert "drained" in error.text
            assert error.info.metadata["conclusion"] == "rejected"
            assert error.info.metadata["next_step"] == "use another node"
        check = PB.MergeCheckRequest(repository=pushed, target=b"main", source=b"main")
        assert api.call(api.operations.MergeCheck, check).up_to_date
    finally:
        api.under_test.core.draining = False
        eventually(lambda: not slots.drained, timeout_s=60, what="the edge knows")
    commit(api, header(pushed), action("WRITE", "a", b"a"))

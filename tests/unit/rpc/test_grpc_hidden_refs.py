"""git.hidden_refs are for admins: no call of the API shows or changes them for other tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import MethodDescriptor
from support.api_methods import REVISIONS, ask, good, reads, variants
from support.edge import TOKEN
from support.git import WorkTree
from support.grpc_api import Api, push_history, serving_api

from quorepo.rpc.auth import Authenticator, TokenDigest
from quorepo.v1 import (
    commit_pb2,
    common_pb2,
    event_pb2,
    operation_pb2,
    ref_pb2,
    repository_pb2,
)

PATH = "team/hiding"
HIDDEN = b"refs/internal/keep"
READER, WRITER = "a-token-that-reads", "a-token-that-writes"
ADA = commit_pb2.Signature(name=b"Ada", email=b"ada@example.org")
OPERATION = operation_pb2


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    git = {"hidden_refs": ["refs/internal", "refs/heads/private", "refs/tags/private"]}
    with serving_api(tmp_path_factory.mktemp("node") / "data", git=git) as api:
        tokens: dict[str, str | TokenDigest] = {
            "admin": TOKEN,
            "reader": TokenDigest.of(READER, "read"),
            "writer": TokenDigest.of(WRITER, "write"),
        }
        api.under_test.edge.authenticator = Authenticator(tokens)
        push_history(api, WorkTree(tmp_path_factory.mktemp("hiding") / "work"), PATH)
        for name in (HIDDEN, b"refs/heads/private/one", b"refs/tags/private/v1"):
            api.call(api.refs.UpdateRefs, creation(api, name))
        yield api


def creation(api: Api, name: bytes) -> ref_pb2.UpdateRefsRequest:
    get = ref_pb2.GetRefRequest(repository=PATH, name=b"refs/heads/main")
    oid = api.call(api.refs.GetRef, get).ref.oid
    update = ref_pb2.RefUpdate(name=name, new_oid=oid, expected_old_oid="")
    return ref_pb2.UpdateRefsRequest(repository=PATH, updates=[update])


READS = reads()
OF_ADMINS = ("FsckRepository", "ListDeletedRepositories")


def is_of_admins(method: MethodDescriptor) -> bool:
    return method.name in OF_ADMINS


@pytest.mark.parametrize("token", [READER, WRITER])
@pytest.mark.parametrize(
    "method", [m for m in READS if not is_of_admins(m)], ids=lambda method: method.name
)
def test_no_read_answers_with_a_hidden_ref_or_takes_its_name(
    api: Api, method: MethodDescriptor, token: str
) -> None:
    request = good(method, PATH)
    for level in ("linearizable", "local"):
        getattr(request.consistency, level).SetInParent()
        for part in ask(api, method, request, token):
            said = part.SerializeToString()
            assert b"internal" not in said
            assert b"private" not in said
    for field in REVISIONS:
        for changed in variants(request, field, HIDDEN):
            if method.name == "CheckObjectsExist":
                assert not ask(api, method, changed, token)[0].objects[-1].oid
                assert ask(api, method, changed)[0].objects[-1].oid, "an admin sees it"
            else:
                with pytest.raises(Exception, match="NOT_FOUND"):
                    ask(api, method, changed, token)
                assert ask(api, method, changed), "an admin sees it"


def test_a_hidden_ref_is_not_there_for_who_may_not_see_it(api: Api) -> None:
    get = ref_pb2.GetRefRequest(repository=PATH, name=HIDDEN)
    exists = ref_pb2.CheckRefExistsRequest(repository=PATH, name=HIDDEN)
    listing = ref_pb2.ListRefsRequest(repository=PATH)
    of_repository = repository_pb2.GetRepositoryRequest(path=PATH)
    assert api.call(api.refs.GetRef, get).ref.oid
    assert api.call(api.refs.CheckRefExists, exists).exists
    assert len(api.call(api.refs.ListRefs, listing).refs) == 5
    assert api.call(api.repositories.GetRepository, of_repository).repository.ref_count == 5
    for token in (READER, WRITER):
        assert api.refused(api.refs.GetRef, get, token).code == "NOT_FOUND"
        assert not api.call(api.refs.CheckRefExists, exists, token).exists
        names = [ref.name for ref in api.call(api.refs.ListRefs, listing, token).refs]
        assert names == [b"refs/heads/main", b"refs/tags/v1"]
        found = api.call(api.repositories.GetRepository, of_repository, token).repository
        assert found.ref_count == 2
        listed = api.call(
            api.repositories.ListRepositories,
            repository_pb2.ListRepositoriesRequest(path_prefix=PATH),
            token,
        ).repositories
        assert [one.ref_count for one in listed] == [2]
        alike = ref_pb2.ListRefsRequest(repository=PATH, prefix=b"refs/internal")
        assert not api.call(api.refs.ListRefs, alike, token).refs


def changes() -> list[tuple[str, Any]]:
    private, tag = b"private/one", b"private/v1"
    update = ref_pb2.RefUpdate(name=HIDDEN, any_old=True)
    update_refs = ref_pb2.UpdateRefsRequest(repository=PATH, updates=[update])
    of: dict[str, Any] = {"repository": PATH, "branch": private}
    new_tag = OPERATION.CreateTagRequest(repository=PATH, tag=tag, target=b"main")
    return [
        ("refs.UpdateRefs", update_refs),
        ("refs.DeleteRefs", ref_pb2.DeleteRefsRequest(repository=PATH, names=[HIDDEN])),
        ("refs.SetHead", ref_pb2.SetHeadRequest(**of)),
        ("refs.SetDefaultBranch", ref_pb2.SetDefaultBranchRequest(**of)),
        ("operations.CreateBranch", OPERATION.CreateBranchRequest(**of, start=b"main")),
        ("operations.DeleteBranch", OPERATION.DeleteBranchRequest(**of)),
        ("operations.CreateTag", new_tag),
        ("operations.DeleteTag", OPERATION.DeleteTagRequest(repository=PATH, tag=tag)),
        ("operations.Merge", OPERATION.MergeRequest(**of, source=b"main", author=ADA)),
        ("operations.CherryPick", OPERATION.CherryPickRequest(**of, commit=b"main", committer=ADA)),
        ("operations.Revert", OPERATION.RevertRequest(**of, commit=b"main", author=ADA)),
        ("operations.Rebase", OPERATION.RebaseRequest(**of, onto=b"main", committer=ADA)),
    ]


@pytest.mark.parametrize(("call", "request_"), changes(), ids=lambda value: str(value)[:30])
def test_who_may_not_see_a_ref_may_not_change_it(api: Api, call: str, request_: Any) -> None:
    service, _, method = call.partition(".")
    before = api.call(api.refs.ListRefs, ref_pb2.ListRefsRequest(repository=PATH))
    refused = api.refused(getattr(getattr(api, service), method), request_, WRITER)
    assert (refused.code, refused.info.reason) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
    assert "deny updating a hidden ref" in refused.text
    assert refused.info.metadata["conclusion"] == "rejected"
    assert api.call(api.refs.ListRefs, ref_pb2.ListRefsRequest(repository=PATH)) == before


def test_a_batch_refuses_the_hidden_ref_and_makes_the_other(api: Api) -> None:
    requests = [creation(api, b"refs/internal/new"), creation(api, b"refs/heads/batched")]
    batch = ref_pb2.BatchUpdateRefsRequest(requests=requests)
    items = api.call(api.refs.BatchUpdateRefs, batch, WRITER).items
    assert [item.HasField("error") for item in items] == [True, False]
    gone = ref_pb2.DeleteRefsRequest(repository=PATH, names=[b"refs/heads/batched"])
    api.call(api.refs.DeleteRefs, gone)


def test_a_hidden_ref_is_no_start_of_a_branch(api: Api) -> None:
    request = OPERATION.CreateBranchRequest(repository=PATH, branch=b"stolen", start=HIDDEN)
    assert api.refused(api.operations.CreateBranch, request, WRITER).code == "NOT_FOUND"
    tag = OPERATION.CreateTagRequest(repository=PATH, tag=b"stolen", target=HIDDEN)
    assert api.refused(api.operations.CreateTag, tag, WRITER).code == "NOT_FOUND"


@pytest.mark.parametrize(("token", "sees"), [(TOKEN, True), (READER, False)])
def test_watchers_are_told_of_hidden_refs_only_if_they_may_see_them(
    api: Api, token: str, sees: bool
) -> None:
    watch = event_pb2.WatchRequest(repository=PATH, from_beginning=True)
    call = api.events.Watch(watch, timeout=60, metadata=(("authorization", f"Bearer {token}"),))
    names: list[bytes] = []
    marker = f"refs/heads/marker-{sees}".encode()
    api.call(api.refs.UpdateRefs, creation(api, marker))
    for message in call:
        names += [change.name for change in message.event.ref_changes]
        if marker in names:
            break
    call.cancel()
    api.call(api.refs.DeleteRefs, ref_pb2.DeleteRefsRequest(repository=PATH, names=[marker]))
    assert (HIDDEN in names) is sees
    assert b"refs/heads/main" in names


def test_head_at_a_hidden_branch_is_not_told(api: Api) -> None:
    set_head = ref_pb2.SetHeadRequest(repository=PATH, branch=b"refs/heads/private/one")
    api.call(api.refs.SetHead, set_head)
    try:
        default = ref_pb2.GetDefaultBranchRequest(repository=PATH)
        assert api.call(api.refs.GetDefaultBranch, default).name == b"refs/heads/private/one"
        shown = api.call(api.refs.GetDefaultBranch, default, READER)
        assert (shown.name, shown.oid) == (b"", "")
        head = ref_pb2.GetRefRequest(repository=PATH, name=b"HEAD")
        assert api.refused(api.refs.GetRef, head, READER).code == "NOT_FOUND"
        local = common_pb2.Consistency(local=common_pb2.Consistency.Local())
        of_head = commit_pb2.GetCommitRequest(repository=PATH, commit=b"HEAD", consistency=local)
        assert api.refused(api.commits.GetCommit, of_head, READER).code == "NOT_FOUND"
    finally:
        api.call(api.refs.SetHead, ref_pb2.SetHeadRequest(repository=PATH, branch=b"main"))


def test_a_view_of_a_writer_is_not_remembered_for_an_admin(api: Api) -> None:
    """The picture of a repository is shared by all calls; what hides is made for each."""
    listing = ref_pb2.ListRefsRequest(repository=PATH)
    counts = [len(api.call(api.refs.ListRefs, listing, t).refs) for t in (READER, TOKEN, READER)]
    assert counts == [2, 5, 2]

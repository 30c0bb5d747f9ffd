"""The client against a real edge over a core without Raft; and its documentation."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from support.edge import TOKEN
from support.grpc_api import Api

import quorepo
from quorepo import aio, errors
from quorepo.rpc.client.unasync import generated
from quorepo.types import FileAction, RefTransaction, RefUpdate, Signature

ROOT = Path(__file__).resolve().parents[3]
ADA = Signature("Ada", "ada@example.org")


def write(client: quorepo.Client, path: str, name: str, content: bytes, **options: Any) -> str:
    result = client.operations.commit_files(
        path, "main", [FileAction("write", name, content)], message=name, author=ADA, **options
    )
    return result.commit_oid


def test_the_examples_of_the_documentation_run(
    endpoint: str, api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUOREPO_ENDPOINT", endpoint)
    monkeypatch.setenv("QUOREPO_TOKEN", TOKEN)
    text = (ROOT / "docs/client.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 6
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/client.md", "exec"), names)


def test_the_synchronous_client_is_made_from_the_asynchronous_one() -> None:
    stale = [
        path.name
        for path, content in generated()
        if not path.exists() or path.read_text(encoding="utf-8") != content
    ]
    assert stale == [], "run: python -m quorepo.rpc.client.unasync"


def test_importing_the_package_imports_no_grpc(tmp_path: Path) -> None:
    code = (
        "import sys, quorepo; assert 'grpc' not in sys.modules; quorepo.Client; quorepo.aio.Client"
    )
    subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, check=True)


def test_a_repository_through_its_life(client: quorepo.Client, path: str) -> None:
    made = client.repositories.create(path, default_branch="main")
    assert client.repositories.get(path) == made
    assert (made.head, made.object_format) == (b"refs/heads/main", "sha1")
    with pytest.raises(errors.AlreadyExists):
        client.repositories.create(path)
    write(client, path, "README", b"hello\n")
    client.repositories.update(path, description="ours")
    assert client.repositories.get(path).description == "ours"
    forked = client.repositories.fork(path, f"{path}-fork")
    assert (forked.path, forked.revision.counter) == (f"{path}-fork", 0)
    assert client.repositories.get(f"{path}-fork").forked_from_id == made.repository_id
    renamed = client.repositories.rename(path, f"{path}-new")
    assert (renamed.path, renamed.repository_id) == (f"{path}-new", made.repository_id)
    listed = [r.path for r in client.repositories.list(path, page_size=1)]
    assert listed == [f"{path}-fork", f"{path}-new"]
    assert client.repositories.optimize(f"{path}-new").packs_before >= 1
    repository_id = client.repositories.delete(f"{path}-new").repository_id
    assert not client.repositories.exists(f"{path}-new")
    with pytest.raises(errors.NotFound) as caught:
        client.repositories.get(f"{path}-new")
    assert (caught.value.reason, caught.value.conclusion) == ("NOT_FOUND", "rejected")
    assert client.repositories.undelete(repository_id) == f"{path}-new"
    assert client.repositories.get(f"{path}-new").repository_id == made.repository_id


def test_refs_are_compared_and_swapped(client: quorepo.Client, path: str) -> None:
    client.repositories.create(path, default_branch="main")
    first = write(client, path, "a", b"1")
    second = write(client, path, "a", b"2")
    client.refs.update(path, [RefUpdate("refs/heads/b", first, "")])
    with pytest.raises(errors.ReferenceMismatch) as caught:
        client.refs.update(path, [RefUpdate("refs/heads/b", second, second)])
    assert caught.value.mismatches == (errors.Mismatch(b"refs/heads/b", second, first),)
    _, results = client.refs.update(
        path,
        [RefUpdate("refs/heads/b", second, second), RefUpdate("refs/heads/c", first, "")],
        allow_partial=True,
    )
    assert [(r.status, r.actual_oid) for r in results] == [("stale", first), ("ok", "")]
    with pytest.raises(errors.NameConflict) as conflict:
        client.refs.update(path, [RefUpdate("refs/heads/b/x", first, "")])
    assert conflict.value.conflicting_name == b"refs/heads/b"
    assert client.refs.merge_bases(path, ["main", "refs/heads/b"]) == (first,)
    names = [ref.name for ref in client.refs.list(path, page_size=1)]
    assert names == [b"refs/heads/b", b"refs/heads/c", b"refs/heads/main"]
    client.refs.delete(path, ["refs/heads/b", "refs/heads/c"])
    assert [ref.name for ref in client.refs.list(path)] == [b"refs/heads/main"]


def test_many_transactions_of_refs_each_have_an_outcome(client: quorepo.Client, path: str) -> None:
    client.repositories.create(path, default_branch="main")
    first = write(client, path, "a", b"1")
    given = str(uuid.uuid4())
    made, stale = client.refs.update_many(
        [
            RefTransaction(path, [RefUpdate("refs/heads/b", first, "")], request_id=given),
            RefTransaction(path, [RefUpdate("refs/heads/main", first, "0" * 39 + "1")]),
        ]
    )
    assert (made.request_id, made.error) == (given, None)
    assert [result.status for result in made.results] == ["ok"]
    assert isinstance(stale.error, errors.ReferenceMismatch)
    assert stale.error.mismatches[0].actual_oid == first
    assert stale.error.request_id == stale.request_id
    assert client.refs.get(path, "refs/heads/b").oid == first
    with pytest.raises(errors.InvalidArgument):
        client.refs.update_many([])


def test_large_content_goes_and_comes_whole(client: quorepo.Client, path: str) -> None:
    content = bytes(range(256)) * 6000
    client.repositories.create(path, default_branch="main")
    write(client, path, "large.bin", content)
    assert client.blobs.file(path, "large.bin").data == content
    assert client.commits.entry(path, "large.bin").mode == 0o100644
    with pytest.raises(errors.NotFound):
        client.blobs.file(path, "nothing")


def test_a_conflict_names_its_paths(client: quorepo.Client, path: str) -> None:
    client.repositories.create(path, default_branch="main")
    write(client, path, "a", b"1\n")
    client.operations.create_branch(path, "topic", "main")
    write(client, path, "a", b"2\n")
    client.operations.commit_files(
        path, "topic", [FileAction("write", "a", b"3\n")], message="3", author=ADA
    )
    assert client.operations.merge_check(path, "main", "topic").conflict_paths == (b"a",)
    with pytest.raises(errors.MergeConflict) as caught:
        client.operations.merge(path, "main", "topic", author=ADA)
    assert [conflict.path for conflict in caught.value.conflicts] == [b"a"]
    stats = client.diffs.stats(path, "main", "topic")
    assert (stats.files, stats.additions, stats.deletions) == (1, 1, 1)
    assert [c.new_path for c in client.diffs.changes(path, "main", "topic")] == [b"a"]


def test_a_repeated_request_is_done_once(client: quorepo.Client, path: str) -> None:
    client.repositories.create(path, default_branch="main")
    request_id = "018f0000-0000-4000-8000-000000000001"
    first = write(client, path, "a", b"1", request_id=request_id)
    assert write(client, path, "a", b"1", request_id=request_id) == first
    assert len(list(client.commits.list(path))) == 1


def test_errors_carry_no_token(endpoint: str, path: str) -> None:
    client = quorepo.Client(endpoint, token="wrong-secret-token", timeout_s=5)
    with client, pytest.raises(errors.Unauthenticated) as caught:
        client.repositories.get(path)
    assert "wrong-secret-token" not in f"{caught.value!r} {client._transport._options!r}"


def test_a_token_file_may_be_replaced(endpoint: str, path: str, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("old\n")
    with quorepo.Client(endpoint, token_file=token_file) as client:
        with pytest.raises(errors.Unauthenticated):
            client.repositories.exists(path)
        token_file.write_text(f"{TOKEN}\n")
        assert not client.repositories.exists(path)


@pytest.mark.parametrize(
    "options",
    [
        {"endpoints": "10.0.0.1:7421"},
        {"endpoints": []},
        {"token": "a", "token_file": "b"},
        {"token": "a\nb"},
        {"timeout_s": 0},
        {"consistency": "maybe"},
        {"ca_file": "/nonexistent/ca.pem"},
    ],
)
def test_wrong_options_are_refused_before_anything_is_tried(options: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidArgument, match="nothing was tried"):
        quorepo.Client(**options)


async def test_the_asynchronous_client_does_the_same(endpoint: str, path: str) -> None:
    async with aio.Client(endpoint, token=TOKEN) as client:
        await client.repositories.create(path, default_branch="main")
        await asyncio.gather(
            *(
                client.operations.commit_files(
                    path, f"b{n}", [FileAction("write", "a", b"x")], message="m", author=ADA
                )
                for n in range(5)
            )
        )
        assert len([ref async for ref in client.refs.list(path, page_size=2)]) == 5
        assert (await client.blobs.file(path, "a", "b1")).data == b"x"
        with pytest.raises(errors.NotFound):
            await client.refs.get(path, "refs/heads/none")
        seen: list[bytes] = []
        async for event in client.events.watch(path, from_beginning=True):
            seen.extend(change.name for change in event.ref_changes)
            if len(seen) == 5:
                break
        assert sorted(seen) == [b"refs/heads/b%d" % n for n in range(5)]


def test_a_watch_ends_at_its_timeout_and_resumes_at_a_cursor(
    client: quorepo.Client, path: str
) -> None:
    client.repositories.create(path, default_branch="main")
    write(client, path, "a", b"1")
    events = list(client.events.watch(path, from_beginning=True, timeout_s=2))
    assert [event.kind for event in events] == ["repository_created", "refs_changed"]
    second = write(client, path, "a", b"2")
    (event,) = client.events.watch(path, cursor=events[-1].cursor, timeout_s=2)
    assert [change.new_oid for change in event.ref_changes] == [second]


def test_a_repository_that_another_client_made_anew_is_read(
    client: quorepo.Client, endpoint: str, path: str
) -> None:
    with quorepo.Client(endpoint, token=TOKEN) as reader:
        client.repositories.create(path, default_branch="main")
        for number in range(3):
            write(client, path, "a", b"%d" % number)
        assert reader.refs.get(path, "HEAD").oid
        client.repositories.delete(path)
        client.repositories.create(path, default_branch="main")
        again = write(client, path, "a", b"again")
        assert reader.refs.get(path, "HEAD").oid == again
        assert reader.blobs.file(path, "a").data == b"again"


def test_commits_are_repeated_taken_back_and_replayed(client: quorepo.Client, path: str) -> None:
    client.repositories.create(path, default_branch="main")
    write(client, path, "a", b"a\n")
    client.operations.create_branch(path, "topic", "main")
    topic = client.operations.commit_files(
        path, "topic", [FileAction("write", "b", b"b\n")], message="b", author=ADA
    )
    write(client, path, "c", b"c\n")
    replayed = client.operations.rebase(path, "topic", "main", committer=ADA)
    assert client.commits.is_ancestor(path, "main", replayed.oid)
    picked = client.operations.cherry_pick(path, "main", topic.commit_oid, committer=ADA)
    assert [entry.path for entry in client.commits.tree(path, "main")] == [b"a", b"b", b"c"]
    client.operations.revert(path, "main", picked.commit_oid, author=ADA)
    assert [entry.path for entry in client.commits.tree(path, "main")] == [b"a", b"c"]

"""Repositories made from bundles, and bundles made of repositories, with C git at the other end."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.git import ENVIRONMENT, WorkTree, clone, git, refs_of
from support.grpc_api import Api, Refused, push_history
from support.waiting import eventually

from quorepo.rpc.request_ids import new_request_uuid
from quorepo.v1 import import_pb2, repository_pb2

PB = import_pb2.CreateRepositoryFromBundleRequest
CHUNK = 256 * 1024
BUNDLE_SIGNATURE = b"# v2 git bundle\n"


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(api: Api) -> Iterator[None]:
    yield
    api.under_test.settle()
    assert api.under_test.uploads() == []


def bundle_of(work: WorkTree, *arguments: str) -> bytes:
    done = subprocess.run(
        ["git", "bundle", "create", "--quiet", *arguments[:1], "-", *arguments[1:]],
        cwd=work.path, env=ENVIRONMENT, capture_output=True, check=True,
    )  # fmt: skip
    return done.stdout


def all_of(work: WorkTree, version: int = 2) -> bytes:
    return bundle_of(work, f"--version={version}", "--all")


def messages(path: str, bundle: bytes, request_id: str = "") -> Iterator[Any]:
    yield PB(header=PB.Header(path=path, request_id=request_id))
    for start in range(0, len(bundle), CHUNK):
        yield PB(chunk=bundle[start : start + CHUNK])
    yield PB(sha256=hashlib.sha256(bundle).digest())


def create(api: Api, path: str, bundle: bytes, request_id: str = "") -> Any:
    return api.call(api.imports.CreateRepositoryFromBundle, messages(path, bundle, request_id))


def refused(api: Api, path: str, bundle: bytes) -> Refused:
    """The refusal; and nothing was made, not even a name."""
    error = api.refused(api.imports.CreateRepositoryFromBundle, messages(path, bundle))
    assert not exists(api, path)
    return error


def exists(api: Api, path: str) -> bool:
    request = repository_pb2.CheckRepositoryExistsRequest(path=path)
    return bool(api.call(api.repositories.CheckRepositoryExists, request).exists)


@pytest.fixture
def history(work: WorkTree) -> WorkTree:
    """Two branches, two tags, HEAD on neither main nor master."""
    work.commit("first", {"a.txt": "a\n", "large.bin": bytes(range(256)) * 4096})
    work.git("tag", "light")
    work.git("tag", "--annotate", "--message=release", "v1")
    work.git("checkout", "--quiet", "-b", "trunk")
    work.commit("second", {"b.txt": "b\n"})
    return work


@pytest.mark.parametrize("version", [2, 3])
def test_a_repository_from_a_bundle_is_what_git_put_into_it(
    api: Api, history: WorkTree, path: str, tmp_path: Path, version: int
) -> None:
    commands = len(api.under_test.core.commands)
    made = create(api, path, all_of(history, version))
    assert (made.path, made.revision.counter) == (path, 1)
    kinds = [c.WhichOneof("kind") for c in api.under_test.core.commands[commands:]]
    assert kinds == ["reserve_path", "transaction"]
    assert refs_of(api.under_test.url(path)) == refs_of(str(history.path))
    target = clone(api.under_test.url(path), tmp_path / "clone")
    assert git("symbolic-ref", "HEAD", cwd=target).stdout == "refs/heads/trunk\n"
    described = api.call(
        api.repositories.GetRepository, repository_pb2.GetRepositoryRequest(path=path)
    )
    assert described.repository.head == b"refs/heads/trunk"


def test_sha256(api: Api, path: str, tmp_path: Path) -> None:
    git("init", "--quiet", "--object-format=sha256", "--initial-branch=main", str(tmp_path / "w"))
    work = WorkTree.__new__(WorkTree)
    work.path = tmp_path / "w"
    work.commit("first")
    create(api, path, all_of(work, 3))
    assert refs_of(api.under_test.url(path)) == refs_of(str(work.path))


def test_there_and_back_again(api: Api, work: WorkTree, path: str, tmp_path: Path) -> None:
    """What CreateBundle gives, git verifies and clones, and a second repository is made of it."""
    push_history(api, work, path)
    parts = api.stream(api.repositories.CreateBundle, repository_pb2.CreateBundleRequest(path=path))
    bundle = b"".join(part.chunk for part in parts)
    assert parts[-1].trailer.sha256 == hashlib.sha256(bundle).digest()
    file = tmp_path / "all.bundle"
    file.write_bytes(bundle)
    git("bundle", "verify", str(file), cwd=work.path)
    clone(str(file), tmp_path / "clone")
    create(api, f"{path}-copy", bundle)
    assert refs_of(api.under_test.url(f"{path}-copy")) == refs_of(api.under_test.url(path))


def test_a_repeated_request_makes_one_repository_and_another_one_none(
    api: Api, history: WorkTree, path: str
) -> None:
    bundle, request_id = all_of(history), str(new_request_uuid())
    first = create(api, path, bundle, request_id)
    history.git("push", "--quiet", api.under_test.url(path), "HEAD:refs/heads/later")
    again = create(api, path, bundle, request_id)
    assert again == first
    assert "refs/heads/later" in refs_of(api.under_test.url(path))
    other = api.refused(api.imports.CreateRepositoryFromBundle, messages(path, bundle))
    assert other.code == "ALREADY_EXISTS"


def test_an_outcome_that_is_not_known_is_settled_by_the_same_request(
    api: Api, history: WorkTree, path: str
) -> None:
    bundle, request_id = all_of(history), str(uuid.uuid4())
    api.under_test.core.answers_lost = 1
    error = api.refused(api.imports.CreateRepositoryFromBundle, messages(path, bundle, request_id))
    assert error.info.reason == "OUTCOME_UNKNOWN"
    assert error.info.metadata["request_id"] == request_id
    assert create(api, path, bundle, request_id).revision.counter == 1


def test_a_bundle_never_lands_in_a_repository_that_came_between(
    api: Api, history: WorkTree, path: str
) -> None:
    """Found missing, verified, and then made by a push a moment before the transaction."""
    under_test = api.under_test

    async def hold() -> asyncio.Event:
        under_test.core.holding.clear()
        under_test.core.hold = asyncio.Event()
        return under_test.core.hold

    async def let_go(event: asyncio.Event) -> None:
        event.set()

    async def let_others_pass() -> None:
        under_test.core.hold = None

    held = under_test.do(hold())
    errors: list[Refused] = []

    def run() -> None:
        errors.append(
            api.refused(api.imports.CreateRepositoryFromBundle, messages(path, all_of(history)))
        )

    creating = threading.Thread(target=run)
    creating.start()
    eventually(under_test.core.holding.is_set, timeout_s=60, what="the transaction is proposed")
    under_test.do(let_others_pass())
    history.git("push", "--quiet", under_test.url(path), "HEAD:refs/heads/other")
    under_test.do(let_go(held))
    creating.join()
    assert errors[0].code == "ALREADY_EXISTS"
    assert set(refs_of(under_test.url(path))) == {"HEAD", "refs/heads/other"}


def test_bad_bundles_are_refused_and_nothing_is_made(
    api: Api, history: WorkTree, path: str
) -> None:
    good = all_of(history)
    header = good[: good.index(b"\n\nPACK") + 2]
    pack = good[len(header) :]
    thin = bundle_of(history, "--version=2", "trunk", "^main")
    oid = history.head().encode()
    v2, v3 = b"# v2 git bundle\n", b"# v3 git bundle\n"
    cases = [
        ("ends inside its header", b""),
        ("ends inside its header", v2 + oid),
        ("ends inside its header", header[:-1]),
        ("no git bundle of version 2 or 3", pack),
        ("no git bundle of version 2 or 3", b"# v4 git bundle\n" + header),
        ("more than 1280 bytes", b"x" * 5000),
        ("more than 1280 bytes", v2 + b"x" * 5000),
        ("has prerequisites", thin),
        ("has a filter", v3 + b"@filter=blob:none\n" + oid + b" refs/heads/a\n\n" + pack),
        ("'new', which is not known", v3 + b"@new=1\n" + oid + b" refs/heads/a\n\n" + pack),
        ("unknown object format", v3 + b"@object-format=md5\n"),
        ("is no ref", v2 + b"zz refs/heads/a\n\n" + pack),
        ("is no ref", v3 + b"@object-format=sha256\n" + oid + b" refs/heads/a\n\n" + pack),
        ("'refs/heads/trunk' twice", header[:-1] + oid + b" refs/heads/trunk\n\n" + pack),
        ("funny refname", v2 + oid + b" refs/heads/a..b\n\n" + pack),
        ("no branch or tag", v2 + oid + b" HEAD\n\n" + pack),
        ("'refs/heads/a'", v2 + b"%b refs/heads/a\n%b refs/heads/a/b\n\n" % (oid, oid) + pack),
    ]
    for words, bundle in cases:
        error = refused(api, path, bundle)
        assert words in error.text, bundle[:80]
        assert error.info.reason == "INVALID_ARGUMENT"


def test_bad_packs_are_refused_and_nothing_is_made(api: Api, history: WorkTree, path: str) -> None:
    good = all_of(history)
    at = good.index(b"\n\nPACK") + 2
    missing = b"# v2 git bundle\n" + b"1" * 40 + b" refs/heads/a\n\n" + good[at:]
    tag_as_branch = git("rev-parse", "v1", cwd=history.path).stdout.strip().encode()
    no_commit = b"# v2 git bundle\n" + tag_as_branch + b" refs/heads/a\n\n" + good[at:]
    flipped = good[: at + 40] + bytes([good[at + 40] ^ 1]) + good[at + 41 :]
    for bundle in (good[:-30], good[:at], good + b"x", flipped, missing, no_commit):
        assert refused(api, path, bundle).info.reason == "CORRUPT_PACK"
    assert create(api, path, good).revision.counter == 1


def test_a_stream_that_was_cut_makes_nothing(api: Api, history: WorkTree, path: str) -> None:
    whole = list(messages(path, all_of(history)))
    for parts in (whole[:-1], whole[1:], [*whole[:-1], PB(sha256=bytes(32))], whole[:1]):
        error = api.refused(api.imports.CreateRepositoryFromBundle, iter(parts))
        assert error.info.reason == "INVALID_ARGUMENT"
        assert not exists(api, path)


def test_a_drained_node_takes_no_bundle(api: Api, history: WorkTree, path: str) -> None:
    slots = api.under_test.edge.push_slots
    api.under_test.core.draining = True
    try:
        eventually(lambda: slots.drained, timeout_s=60, what="the edge knows")
        error = refused(api, path, all_of(history))
        assert error.info.reason == "UNAVAILABLE"
        assert "drained" in error.text
    finally:
        api.under_test.core.draining = False
        eventually(lambda: not slots.drained, timeout_s=60, what="the edge knows")


def test_more_refs_than_the_limit(api: Api, history: WorkTree, path: str) -> None:
    oid = history.head().encode()
    lines = b"".join(b"%b refs/heads/b%d\n" % (oid, n) for n in range(10_001))
    error = refused(api, path, BUNDLE_SIGNATURE + lines + b"\n")
    assert error.info.metadata["limit"] == "limits.refs_per_push_max"
    assert error.code == "RESOURCE_EXHAUSTED"


def test_who_may_not_create_is_refused(api: Api, history: WorkTree, path: str) -> None:
    stranger = api.refused(
        api.imports.CreateRepositoryFromBundle, messages(path, all_of(history)), token=None
    )
    assert stranger.code == "UNAUTHENTICATED"
    metric = api.under_test.edge.metrics.imports.labels("bundle", "ok")
    before = metric._value.get()
    create(api, path, all_of(history))
    assert metric._value.get() == before + 1

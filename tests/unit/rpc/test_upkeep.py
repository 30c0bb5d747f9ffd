"""Consolidation and prune over a core without Raft: what is merged when, retries, the API."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.edge import EdgeUnderTest, edge_config, running_edge
from support.git import WorkTree, clone, git
from support.grpc_api import Api, Refused, serving_api
from support.waiting import eventually

from quorepo.rpc.upkeep import Outcome, Upkeep
from quorepo.storage.errors import Unavailable
from quorepo.storage.layout import retired_packs
from quorepo.v1 import ref_pb2, repository_pb2


def push_many(api: Api, work: WorkTree, path: str, count: int) -> list[str]:
    """One push per commit."""
    heads = []
    for number in range(count):
        heads.append(work.commit(f"{number}", {"file.txt": "x\n" * 200 + f"{number}\n"}))
        work.git("push", "--quiet", api.under_test.url(path), "HEAD:refs/heads/main")
    return heads


def run(api: Api, path: str, kind: str, **arguments: Any) -> Outcome:
    edge = api.under_test.edge

    async def work() -> Outcome:
        upkeep = Upkeep(edge)
        try:
            method: Any = upkeep.optimize if kind == "optimize" else upkeep.prune
            outcome: Outcome = await method(path, edge.origin("admin"), **arguments)
            return outcome
        finally:
            upkeep.close()

    return api.under_test.do(work())


def fsck(api: Api, path: str, tips: dict[str, str]) -> None:
    """git's own verdict on the repository's folder, with its refs written beside."""
    view = api.under_test.do(api.under_test.edge.reads.open(path))
    folder = view.layout.repository(view.repository_id)
    lines = [f"{oid} {name}\n" for name, oid in sorted(tips.items())]
    (folder / "packed-refs").write_text("# pack-refs with: sorted\n" + "".join(lines))
    git("--git-dir", str(folder), "fsck", "--full", "--strict")


def test_all_packs_become_one_and_clones_are_the_same(
    api: Api, work: WorkTree, path: str, tmp_path: Path
) -> None:
    heads = push_many(api, work, path, 7)
    before = api.under_test.do(api.under_test.edge.reads.open(path))
    outcome = run(api, path, "optimize")
    assert (outcome.packs_before, outcome.packs_after, outcome.packs_removed) == (7, 1, 7)
    assert outcome.objects == 21
    assert outcome.objects_dropped > 0  # bases of completed thin packs
    after = api.under_test.do(api.under_test.edge.reads.open(path))
    assert after.row.counter == before.row.counter + 1
    assert outcome.revision == after.row.revision
    assert after.refs == before.refs
    assert len(after.pack_digests) == 1
    clone(api.under_test.url(path), tmp_path / "clone")
    fsck(api, path, {"refs/heads/main": heads[-1]})
    assert retired_packs(after.layout) >= set(before.pack_digests)
    # The view of the old revision still reads all its packs.
    ids = {oid for pack in before.packs.packs for oid in pack.iter_oids()}
    assert len(ids) == 21
    assert all(before.packs.get(oid) == after.packs.get(oid) for oid in ids)
    again = run(api, path, "optimize")
    assert (again.packs_before, again.packs_removed) == (1, 0)


def test_push_in_between_is_kept_as_a_new_tail(api: Api, work: WorkTree, path: str) -> None:
    push_many(api, work, path, 4)
    core = api.under_test.core

    async def push() -> None:
        core.before_replacement = None
        await asyncio.to_thread(push_many, api, work, path, 1)

    core.before_replacement = push
    outcome = run(api, path, "optimize")
    assert outcome.packs_removed == 4
    view = api.under_test.do(api.under_test.edge.reads.open(path))
    assert len(view.pack_digests) == 2
    assert view.refs[b"refs/heads/main"].hex() == work.head()


def test_stale_removal_is_tried_again_with_what_is_there_now(
    api: Api, work: WorkTree, path: str
) -> None:
    push_many(api, work, path, 4)
    core = api.under_test.core

    async def overtake() -> None:
        core.before_replacement = None
        edge = api.under_test.edge
        other = Upkeep(edge)
        try:
            lock, edge.upkeep_lock = edge.upkeep_lock, asyncio.Lock()  # as on another node
            await other.optimize(path, edge.origin("other"), incremental=True)
            edge.upkeep_lock = lock
        finally:
            other.close()
        await asyncio.to_thread(push_many, api, work, path, 1)

    core.before_replacement = overtake
    outcome = run(api, path, "optimize")
    assert (outcome.packs_after, outcome.packs_removed) == (1, 2)


def test_without_a_leader_nothing_is_changed(api: Api, work: WorkTree, path: str) -> None:
    push_many(api, work, path, 3)
    view = api.under_test.do(api.under_test.edge.reads.open(path))
    core = api.under_test.core

    async def lose() -> None:
        core.before_replacement = None
        core.has_leader = False

    core.before_replacement = lose
    try:
        with pytest.raises(Unavailable):
            run(api, path, "optimize")
    finally:
        core.has_leader = True
    after = api.under_test.do(api.under_test.edge.reads.open(path))
    assert after.row == view.row
    assert api.under_test.uploads() == []


def test_prune_removes_what_a_forced_push_left_after_the_grace_time(
    api: Api, work: WorkTree, path: str, tmp_path: Path
) -> None:
    push_many(api, work, path, 2)
    work.git("checkout", "--quiet", "--orphan", "other")
    head = work.commit("other", {"other.txt": "other\n"})
    work.git("push", "--quiet", "--force", api.under_test.url(path), "HEAD:refs/heads/main")
    kept = run(api, path, "prune", grace_s=3600.0)
    assert kept.packs_removed == 0
    # One more push, so that log time is behind the pushes before.
    work.git("push", "--quiet", api.under_test.url(path), "HEAD:refs/heads/b")
    view = api.under_test.do(api.under_test.edge.reads.open(path))
    outcome = run(api, path, "prune", grace_s=0.0)
    assert outcome.packs_removed == 3
    # commit, tree, blob of each of the first two; the other commit has its own file and the old.
    assert outcome.objects_dropped == 5
    after = api.under_test.do(api.under_test.edge.reads.open(path))
    assert after.row.prune_epoch == view.row.prune_epoch + 1
    clone(api.under_test.url(path), tmp_path / "clone")
    fsck(api, path, {"refs/heads/main": head, "refs/heads/b": head})
    # What was pruned can be pushed again, from a client that verified nothing of the new epoch.
    work.git("push", "--quiet", api.under_test.url(path), "main:refs/heads/back")
    clone(api.under_test.url(path), tmp_path / "back", "--branch=back")
    assert run(api, path, "prune", grace_s=0.0).objects_dropped == 0


@pytest.mark.parametrize(("grace_s", "packs_removed"), [(0.0, 3), (3600.0, 0), (None, 0)])
def test_prune_grace_s_is_the_grace_time_of_a_prune_that_names_none(
    work: WorkTree, tmp_path: Path, grace_s: float | None, packs_removed: int
) -> None:
    storage = {} if grace_s is None else {"prune_grace_s": grace_s}
    with serving_api(tmp_path / "data", storage=storage) as api:
        push_many(api, work, "r", 2)
        work.git("checkout", "--quiet", "--orphan", "other")
        work.commit("other", {"other.txt": "other\n"})
        work.git("push", "--quiet", "--force", api.under_test.url("r"), "HEAD:refs/heads/main")
        # One more push, so that log time is behind the pushes before.
        work.git("push", "--quiet", api.under_test.url("r"), "HEAD:refs/heads/b")
        request = repository_pb2.PruneRepositoryRequest(path="r")
        answer = api.call(api.repositories.PruneRepository, request)
        assert answer.change.packs_removed == packs_removed
        # What the request says goes before it.
        request = repository_pb2.PruneRepositoryRequest(path="r", grace_s=0.0)
        answer = api.call(api.repositories.PruneRepository, request)
        assert answer.change.packs_removed == 3 - packs_removed


def test_push_verified_before_a_prune_is_verified_again(
    api: Api, work: WorkTree, path: str
) -> None:
    """The client sent its pack: what was pruned meanwhile comes back with it."""
    heads = push_many(api, work, path, 1)
    work.git("checkout", "--quiet", "--orphan", "other")
    work.commit("other", {"file.txt": "other\n"})
    work.git("push", "--quiet", "--force", api.under_test.url(path), "HEAD:refs/heads/main")
    work.git("push", "--quiet", api.under_test.url(path), "HEAD:refs/heads/b")
    core = api.under_test.core
    core.hold = asyncio.Event()
    core.holding.clear()

    async def push() -> int:
        process = await asyncio.create_subprocess_exec(
            "git", "push", api.under_test.url(path), f"{heads[0]}:refs/heads/back",
            cwd=work.path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        await process.communicate()
        assert process.returncode is not None
        return process.returncode

    future = asyncio.run_coroutine_threadsafe(push(), api.under_test.loop)
    eventually(core.holding.is_set, what="the push is about to be ordered")
    hold, core.hold = core.hold, None
    assert run(api, path, "prune", grace_s=0.0).objects_dropped == 3
    api.under_test.loop.call_soon_threadsafe(hold.set)
    assert future.result(30) == 0
    view = api.under_test.do(api.under_test.edge.reads.open(path))
    assert view.refs[b"refs/heads/back"].hex() == heads[0]
    assert bytes.fromhex(heads[0]) in view.packs


def test_api_and_its_limits(api: Api, work: WorkTree, path: str) -> None:
    push_many(api, work, path, 3)
    answer = api.call(
        api.repositories.OptimizeRepository, repository_pb2.OptimizeRepositoryRequest(path=path)
    )
    assert (answer.change.packs_before, answer.change.packs_after) == (3, 1)
    found = api.call(api.repositories.GetRepository, repository_pb2.GetRepositoryRequest(path=path))
    assert found.repository.revision == answer.revision
    answer = api.call(
        api.repositories.PruneRepository, repository_pb2.PruneRepositoryRequest(path=path)
    )
    assert answer.change.packs_removed == 0
    for request in (
        repository_pb2.PruneRepositoryRequest(path=path, grace_s=-1),
        repository_pb2.PruneRepositoryRequest(path=path, grace_s=float("nan")),
    ):
        refused = api.refused(api.repositories.PruneRepository, request)
        assert refused.code == "INVALID_ARGUMENT"
    missing = repository_pb2.OptimizeRepositoryRequest(path="not/there")
    assert api.refused(api.repositories.OptimizeRepository, missing).code == "NOT_FOUND"


@contextlib.contextmanager
def looked_after(folder: Path, **storage: Any) -> Iterator[EdgeUnderTest]:
    """A leader that looks for what to consolidate all the time."""
    config = edge_config(folder / "data", storage={"consolidation_interval_s": 0.05, **storage})
    with running_edge(config) as server:

        async def start() -> tuple[Upkeep, asyncio.Task[None]]:
            upkeep = Upkeep(server.edge)
            return upkeep, asyncio.create_task(upkeep.run())

        async def stop() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            upkeep.close()

        upkeep, task = server.do(start())
        try:
            yield server
        finally:
            server.do(stop())


def packs_of(server: EdgeUnderTest, path: str = "r") -> list[bytes]:
    digests: list[bytes] = server.do(server.edge.reads.open(path)).pack_digests
    return digests


def test_leader_consolidates_by_itself_and_nobody_else(tmp_path: Path) -> None:
    with looked_after(tmp_path, packs_max=5) as server:
        work = WorkTree(tmp_path / "work")
        for number in range(9):
            work.commit(f"{number}")
            work.git("push", "--quiet", server.url("r"), "HEAD:refs/heads/main")
        eventually(lambda: len(packs_of(server)) <= 5, timeout_s=60, what="consolidated")
        replaced = [c for c in server.core.commands if c.WhichOneof("kind") == "replace_packs"]
        assert {c.actor for c in replaced} == {"node:n1"}
        text = server.edge.metrics.text().decode()
        assert 'quorepo_upkeep_runs_total{kind="consolidate",result="done"}' in text


@pytest.mark.parametrize(("part", "merged"), [(0.3, True), (1.0, False)])
def test_packs_that_repeat_objects_are_merged_before_they_are_many(
    tmp_path: Path, part: float, merged: bool
) -> None:
    """A thin pack is stored with the bases of its deltas: storage.repeated_fraction_max."""
    work = WorkTree(tmp_path / "work")
    lines = [hashlib.sha256(b"%d" % number).hexdigest() + "\n" for number in range(300)]
    with looked_after(tmp_path, repeated_fraction_max=part, packs_max=12) as server:
        for number in range(9):
            lines[number * 30] = f"changed in {number}\n"
            work.commit(f"{number}", {"text.txt": "".join(lines)})
            work.git("push", "--quiet", server.url("r"), "HEAD:refs/heads/main")
        if merged:
            eventually(lambda: len(packs_of(server)) < 8, timeout_s=60, what="consolidated")
            return
        # By the time that another one is merged this one was looked at.
        for number in range(13):
            work.commit(f"of another {number}")
            work.git("push", "--quiet", server.url("s"), "HEAD:refs/heads/main")
        eventually(lambda: len(packs_of(server, "s")) <= 12, timeout_s=60, what="the other one")
        assert len(packs_of(server)) == 9


def test_a_large_pack_is_left_alone_by_automatic_runs(tmp_path: Path) -> None:
    """storage.consolidation_bytes_max"""
    work = WorkTree(tmp_path / "work")
    with looked_after(tmp_path, packs_max=5, consolidation_bytes_max=30_000) as server:
        noise = "".join(hashlib.sha256(b"%d" % n).hexdigest() + "\n" for n in range(2000))
        work.commit("large", {"large.txt": noise})
        work.git("push", "--quiet", server.url("r"), "HEAD:refs/heads/main")
        [large] = packs_of(server)
        for number in range(9):
            work.commit(f"{number}")
            work.git("push", "--quiet", server.url("r"), "HEAD:refs/heads/main")
        eventually(lambda: len(packs_of(server)) <= 5, timeout_s=60, what="consolidated")
        assert large in packs_of(server)


def test_ref_to_an_object_that_is_pruned_meanwhile_is_refused(
    api: Api, work: WorkTree, path: str
) -> None:
    """It was there when it was verified, and is not when the transaction is applied."""
    heads = push_many(api, work, path, 1)
    work.git("checkout", "--quiet", "--orphan", "other")
    work.commit("other", {"file.txt": "other\n"})
    work.git("push", "--quiet", "--force", api.under_test.url(path), "HEAD:refs/heads/main")
    work.git("push", "--quiet", api.under_test.url(path), "HEAD:refs/heads/b")
    core = api.under_test.core
    core.hold = asyncio.Event()
    core.holding.clear()
    refused: list[Refused] = []
    request = ref_pb2.UpdateRefsRequest(
        repository=path,
        updates=[ref_pb2.RefUpdate(name=b"refs/heads/back", new_oid=heads[0], any_old=True)],
    )
    asking = threading.Thread(
        target=lambda: refused.append(api.refused(api.refs.UpdateRefs, request))
    )
    asking.start()
    eventually(core.holding.is_set, what="the update is about to be ordered")
    hold, core.hold = core.hold, None
    assert run(api, path, "prune", grace_s=0.0).objects_dropped == 3
    api.under_test.loop.call_soon_threadsafe(hold.set)
    asking.join()
    assert len(refused) == 1
    assert heads[0] in refused[0].text
    view = api.under_test.do(api.under_test.edge.reads.open(path))
    assert b"refs/heads/back" not in view.refs

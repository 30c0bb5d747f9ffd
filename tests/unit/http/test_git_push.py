"""`git push` against one edge: what it does, what it refuses, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.edge import EdgeUnderTest
from support.git import WorkTree, clone, git, refs_of

from quorepo.internal.v1 import log_pb2


def test_a_push_creates_the_repository_and_a_clone_gives_it_back(
    server: EdgeUnderTest, work: WorkTree, path: str, tmp_path: Path
) -> None:
    oid = work.commit("first", {"a.txt": "a\n", "dir/b.txt": "b\n"})
    pushed = work.git("push", server.url(path), "main")
    assert "new branch" in pushed.stderr
    for version in "0", "1", "2":
        target = clone(server.url(path), tmp_path / version, f"protocol.version={version}")
        assert git("rev-parse", "HEAD", cwd=target).stdout.strip() == oid
        assert (target / "dir/b.txt").read_text() == "b\n"


def test_the_path_works_with_and_without_git_suffix(
    server: EdgeUnderTest, work: WorkTree, path: str
) -> None:
    oid = work.commit("first")
    work.git("push", server.url(path + ".git"), "main")
    assert refs_of(server.url(path)) == refs_of(server.url(path + ".git/"))
    assert refs_of(server.url(path))["refs/heads/main"] == oid


def test_fast_forward_force_and_delete(server: EdgeUnderTest, work: WorkTree, path: str) -> None:
    url = server.url(path)
    work.commit("first")
    work.git("push", url, "main", "HEAD:refs/heads/topic")
    second = work.commit("second")
    work.git("push", url, "main")
    assert refs_of(url)["refs/heads/main"] == second
    work.git("reset", "--quiet", "--hard", "HEAD~1")
    rewritten = work.commit("rewritten")
    assert work.git("push", url, "main", check=False).returncode != 0
    work.git("push", "--force", url, "main")
    assert refs_of(url)["refs/heads/main"] == rewritten
    work.git("push", url, "--delete", "topic")
    assert set(refs_of(url)) == {"HEAD", "refs/heads/main"}


def test_a_thin_pack_is_completed(
    server: EdgeUnderTest, work: WorkTree, path: str, tmp_path: Path
) -> None:
    url = server.url(path)
    lines = [f"line {number}\n" for number in range(2000)]
    work.commit("first", {"large.txt": "".join(lines)})
    work.git("push", url, "main")
    lines[1000] = "changed\n"
    work.commit("second", {"large.txt": "".join(lines)})
    work.git("push", "--thin", url, "main")
    assert (clone(url, tmp_path / "clone") / "large.txt").read_text() == "".join(lines)


def test_a_ref_to_an_object_that_is_there_needs_an_empty_pack_only(
    server: EdgeUnderTest, work: WorkTree, path: str
) -> None:
    oid = work.commit("first")
    work.git("push", server.url(path), "main")
    before = len(server.core.replicated)
    work.git("push", server.url(path), f"{oid}:refs/heads/again", f"{oid}:refs/tags/v1")
    assert refs_of(server.url(path))["refs/tags/v1"] == oid
    assert len(server.core.replicated) == before


def test_deleting_the_current_branch_is_refused_in_gits_words(
    server: EdgeUnderTest, work: WorkTree, path: str
) -> None:
    work.commit("first")
    work.git("push", server.url(path), "main")
    refused = work.git("push", server.url(path), "--delete", "main", check=False)
    assert "deletion of the current branch prohibited" in refused.stderr
    assert "refs/heads/main" in refs_of(server.url(path))


def test_an_atomic_push_is_all_or_nothing(server: EdgeUnderTest, work: WorkTree, path: str) -> None:
    url = server.url(path)
    work.commit("first")
    work.git("push", url, "main", "HEAD:refs/heads/a/b")
    before = refs_of(url)
    second = work.commit("second")
    refused = work.git("push", "--atomic", url, "main", "HEAD:refs/heads/a", check=False)
    assert refused.returncode != 0
    assert "atomic push failure" in refused.stderr
    assert "'refs/heads/a/b' exists; cannot create 'refs/heads/a'" in refused.stderr
    assert refs_of(url) == before
    work.git("push", url, "main", "HEAD:refs/heads/a", check=False)
    assert refs_of(url) == {**before, "refs/heads/main": second, "HEAD": second}


def test_a_lease_on_an_old_value_is_stale(server: EdgeUnderTest, work: WorkTree, path: str) -> None:
    url = server.url(path)
    first = work.commit("first")
    work.git("push", url, "main")
    second = work.commit("second")
    work.git("push", url, "main")
    work.commit("third")
    stale = work.git("push", f"--force-with-lease=main:{first}", url, "main", check=False)
    assert "stale info" in stale.stderr
    assert refs_of(url)["refs/heads/main"] == second


def test_what_apply_refuses_is_reported_per_ref(
    server: EdgeUnderTest, work: WorkTree, path: str
) -> None:
    """A ref moved between the early check and apply; another is fine."""
    url = server.url(path)
    first = work.commit("first")
    work.git("push", url, "main")
    work.commit("second")
    result = log_pb2.TransactionResult(
        refs=[
            log_pb2.RefResult(
                status=log_pb2.REF_STATUS_STALE, actual_old_oid=bytes.fromhex("ab" * 20)
            ),
            log_pb2.RefResult(status=log_pb2.REF_STATUS_OK),
        ]
    )
    server.core.results.append(log_pb2.Result(transaction=result))
    refused = work.git("push", url, "main", "HEAD:refs/heads/b", check=False)
    assert f"stale info: expected {first}, is {'ab' * 20}" in refused.stderr
    assert "new branch" in refused.stderr


def test_head_follows_the_first_push(server: EdgeUnderTest, work: WorkTree, path: str) -> None:
    work.commit("first")
    work.git("push", server.url(path), "HEAD:refs/heads/zebra", "HEAD:refs/heads/master")
    shown = git("ls-remote", "--symref", server.url(path), "HEAD").stdout
    assert shown.startswith("ref: refs/heads/master\tHEAD")


def test_push_options_and_the_user_are_in_the_transaction(
    server: EdgeUnderTest, work: WorkTree, path: str
) -> None:
    work.commit("first")
    work.git("push", "-o", "ci.skip", "-o", "topic=x", server.url(path), "main")
    command = server.core.commands[-1]
    assert list(command.transaction.push_options) == ["ci.skip", "topic=x"]
    assert command.actor == "admin"


def test_a_push_of_more_than_a_megabyte_with_its_probe(
    server: EdgeUnderTest, work: WorkTree, path: str, tmp_path: Path
) -> None:
    import random

    noise = random.Random(7).randbytes(3_000_000)
    work.commit("large", {"noise.bin": noise})
    work.git("push", server.url(path), "main")
    assert (clone(server.url(path), tmp_path / "clone") / "noise.bin").read_bytes() == noise


def test_a_push_from_a_shallow_clone_is_taken_when_nothing_is_missing(
    server: EdgeUnderTest, work: WorkTree, path: str, tmp_path: Path
) -> None:
    url = server.url(path)
    for number in range(3):
        work.commit(f"change {number}")
    work.git("push", url, "main")
    git("clone", "--quiet", "--depth=1", url, str(tmp_path / "shallow"))
    shallow = tmp_path / "shallow"
    (shallow / "new.txt").write_text("new\n")
    git("add", "new.txt", cwd=shallow)
    git("commit", "--quiet", "-m", "from shallow", cwd=shallow)
    git("push", "--quiet", "origin", "HEAD:main", cwd=shallow)
    clone(url, tmp_path / "full")


def test_no_leader_is_told_before_the_pack_is_sent(
    server: EdgeUnderTest, work: WorkTree, path: str
) -> None:
    work.commit("first")
    server.core.has_leader = False
    try:
        refused = work.git("push", server.url(path), "main", check=False)
    finally:
        server.core.has_leader = True
    assert refused.returncode != 0
    assert "no leader" in refused.stderr
    assert "503" in refused.stderr


def test_a_lost_answer_is_unknown_and_pushing_again_is_harmless(
    server: EdgeUnderTest, work: WorkTree, path: str
) -> None:
    oid = work.commit("first")
    server.core.answers_lost = 1
    unknown = work.git("push", server.url(path), "main", check=False)
    assert unknown.returncode != 0
    assert "remote failed to report status" in unknown.stderr
    assert "the outcome of this push is not known for refs/heads/main" in unknown.stderr
    assert "[remote rejected]" not in unknown.stderr
    again = work.git("push", server.url(path), "main")
    assert "up-to-date" in again.stderr
    assert refs_of(server.url(path))["refs/heads/main"] == oid


def test_a_lost_proposal_is_unknown_too_and_repeating_it_applies_it(
    server: EdgeUnderTest, work: WorkTree, path: str
) -> None:
    oid = work.commit("first")
    server.core.transactions_lost = 1
    unknown = work.git("push", server.url(path), "main", check=False)
    assert "remote failed to report status" in unknown.stderr
    work.git("push", server.url(path), "main")
    assert refs_of(server.url(path))["refs/heads/main"] == oid


def test_a_prune_in_between_makes_the_push_verify_again(
    server: EdgeUnderTest, work: WorkTree, path: str
) -> None:
    work.commit("first")
    work.git("push", server.url(path), "main")
    oid = work.commit("second")
    reverify = log_pb2.Rejection(reason=log_pb2.REJECTION_REASON_REVERIFY)
    server.core.results += [log_pb2.Result(rejection=reverify)]
    work.git("push", server.url(path), "main")
    first, second = server.core.commands[-2:]
    assert first.request_id == second.request_id  # REVERIFY is not kept: still one request
    assert first.transaction.packs_added[0].digest == second.transaction.packs_added[0].digest
    assert refs_of(server.url(path))["refs/heads/main"] == oid


def test_a_prune_makes_a_push_without_a_pack_verify_again_too(
    server: EdgeUnderTest, work: WorkTree, path: str
) -> None:
    oid = work.commit("first")
    work.git("push", server.url(path), "main")
    reverify = log_pb2.Rejection(reason=log_pb2.REJECTION_REASON_REVERIFY)
    server.core.results += [log_pb2.Result(rejection=reverify)] * 2
    work.git("push", server.url(path), f"{oid}:refs/heads/again")
    assert refs_of(server.url(path))["refs/heads/again"] == oid


def test_a_deleted_repository_is_created_anew_by_a_push(
    server: EdgeUnderTest, work: WorkTree, path: str
) -> None:
    """Also when the crash came between the two steps of the deletion."""
    oid = work.commit("first")
    work.git("push", server.url(path), "main")
    edge = server.edge
    old = server.do(edge.repositories.get(path)).repository_id
    command = edge.origin("admin").command()
    command.delete_repository.repository_id = old
    server.core.apply(1, command)
    gone = git("ls-remote", server.url(path), check=False)
    assert "does not exist" in gone.stderr
    work.git("push", server.url(path), "main")
    assert refs_of(server.url(path))["refs/heads/main"] == oid
    assert server.do(edge.repositories.get(path)).repository_id != old


@pytest.mark.parametrize("bad", ["a//b", ".hidden/x", "a/b.lock", "a.git/b"])
def test_a_path_outside_the_namespace_is_a_bad_request(
    server: EdgeUnderTest, work: WorkTree, bad: str
) -> None:
    work.commit("first")
    refused = work.git("push", server.url(bad), "main", check=False)
    assert refused.returncode != 0
    assert "repository path" in refused.stderr or "not found" in refused.stderr

"""Nothing passes that no visible tip reaches, whatever its type."""

from __future__ import annotations

import pytest
from support.git import git
from support.git_http import StoredRepository

from quorepo.storage.errors import NotFound
from quorepo.storage.git.commits import CommitReader
from quorepo.storage.git.fetch_request import FetchRequest
from quorepo.storage.git.negotiation import negotiate
from quorepo.storage.git.reachability import VisibleObjects, check_wants
from quorepo.storage.git.upload_pack import job_arguments


def ids(stored: StoredRepository, *revisions: str) -> list[bytes]:
    done = git("rev-parse", *revisions, cwd=stored.source)
    return [bytes.fromhex(line) for line in done.stdout.split()]


VISIBLE = ("main~6", "main~6^{tree}", "v1.0:docs/a", "v1.0:docs/a/b/c.txt", "v2.0", "topic~1:docs")
HIDDEN = ("refs/hidden/secret", "refs/hidden/secret^{tree}", "refs/hidden/secret:secret.txt")


def test_visible_objects_are_exactly_the_closure_of_the_tips(stored: StoredRepository) -> None:
    tips = stored.view().tips()
    listing = git(
        "rev-list", "--objects", "--no-object-names", "--stdin", cwd=stored.source,
        stdin="\n".join(tip.hex() for tip in tips).encode(),
    )  # fmt: skip
    expected = {bytes.fromhex(line) for line in listing.stdout.split()}
    objects = stored.objects()
    everything = sorted({oid for pack in objects.packs for oid in pack.iter_oids()})
    visible = VisibleObjects(CommitReader(objects), tips)
    assert {oid for oid in everything if oid in visible} == expected
    assert len(everything) > len(expected)


def test_wants_behind_a_tip_pass(stored: StoredRepository) -> None:
    reader = CommitReader(stored.objects())
    for revision in VISIBLE:
        check_wants(reader, ids(stored, revision), stored.view().tips())


@pytest.mark.parametrize("revision", HIDDEN)
def test_hidden_wants_and_missing_ones_are_refused_alike(
    stored: StoredRepository, revision: str
) -> None:
    reader = CommitReader(stored.objects())
    (hidden,) = ids(stored, revision)
    assert hidden in reader.objects
    for want in (hidden, b"\x12" * 20):
        with pytest.raises(NotFound) as caught:
            check_wants(reader, [*ids(stored, *VISIBLE), want], stored.view().tips())
        assert str(caught.value) == f"upload-pack: not our ref {want.hex()}"


def test_dropped_branch_is_refused(stored: StoredRepository) -> None:
    objects = stored.objects()
    reader = CommitReader(objects)
    visible = VisibleObjects(reader, [*stored.view().tips(), *ids(stored, "refs/hidden/secret")])
    dropped = [
        oid
        for pack in objects.packs
        for oid in pack.iter_oids()
        if objects.object_type(oid) == 1 and oid not in visible
    ]
    assert dropped
    for oid in dropped:
        with pytest.raises(NotFound):
            negotiate(reader, FetchRequest(2, (oid,)), stored.view().tips())


def test_worker_keeps_what_it_found_visible(stored: StoredRepository) -> None:
    """The next lazy fetch is answered from it; a refusal in between changes nothing."""
    for revision in (*VISIBLE, HIDDEN[0], *VISIBLE):
        request = FetchRequest(2, tuple(ids(stored, revision)), done=True)
        arguments = {
            **job_arguments(request, stored.view()),
            "repository": stored.description(),
        }
        if revision in HIDDEN:
            with pytest.raises(NotFound):
                stored.run_job("negotiate", arguments)
        else:
            assert stored.run_job("negotiate", arguments)["common"] == []

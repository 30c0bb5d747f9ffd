"""The arithmetic of a membership step, and what is refused: of pictures of a cluster."""

from __future__ import annotations

import pytest

from quorepo.internal.v1 import core_pb2
from quorepo.rpc.membership_plan import (
    add_plan,
    drain_plan,
    promote_plan,
    remove_plan,
    replace_plan,
    transfer_plan,
)

PACK, OTHER_PACK = b"p" * 32, b"q" * 32


def picture(
    *nodes: str,
    dead: tuple[str, ...] = (),
    learners: tuple[str, ...] = (),
    behind: tuple[str, ...] = (),
    missing: dict[str, list[bytes]] | None = None,
    drained: tuple[str, ...] = (),
) -> core_pb2.CoreStatus:
    """One group, led by n1; every living node tells of itself."""
    group = core_pb2.CoreGroupStatus(group=1, leader="n1", commit_index=1000)
    status = core_pb2.CoreStatus(cluster_id="c")
    for name in nodes:
        group.replicas.add(
            node=name,
            replica_id=f"{name}@a",
            votes=name not in learners,
            reachable=name not in dead,
            may_lead=name not in learners and name not in drained,
            role="leader" if name == "n1" else "voter",
            match_index=100 if name in behind else 1000,
        )
        if name not in dead:
            view = core_pb2.CoreNodeView(node=name, replica_id=f"{name}@a")
            own = view.groups.add(group=1)
            own.missing_digests.extend((missing or {}).get(name, []))
            own.packs_missing = len(own.missing_digests)
            status.views.append(view)
    status.groups.append(group)
    return status


def test_the_arithmetic_of_the_issue() -> None:
    plan = remove_plan(picture("n1", "n2", "n3", dead=("n3",)), "n3")
    assert plan.groups[0].arithmetic == (
        "3 voters, 2 reachable, majority 2; after removal 2 voters, majority 2, tolerates 0 "
        "failures"
    )
    assert list(plan.refusals) == []
    assert add_plan(picture("n1", "n2", "n3"), "n4", "n4@a", keep_learner=False).groups[
        0
    ].arithmetic == (
        "3 voters, 3 reachable, majority 2; after promotion 4 voters, majority 3, tolerates 1 "
        "failures"
    )


@pytest.mark.parametrize(
    ("nodes", "dead", "goes", "refused"),
    [
        (("n1", "n2", "n3"), ("n3",), "n2", True),
        (("n1", "n2", "n3"), (), "n2", False),
        (("n1", "n2"), ("n2",), "n2", None),  # there is no majority to decide on anything
        (("n1", "n2"), (), "n2", False),
        (("n1", "n2", "n3", "n4"), ("n4",), "n3", False),
        (("n1", "n2", "n3", "n4", "n5"), ("n4", "n5"), "n3", True),
        (("n1", "n2", "n3", "n4", "n5"), ("n4", "n5"), "n5", False),
    ],
)
def test_what_would_lose_the_majority_is_refused(
    nodes: tuple[str, ...], dead: tuple[str, ...], goes: str, refused: bool | None
) -> None:
    plan = remove_plan(picture(*nodes, dead=dead), goes)
    if refused is None:
        assert "has no majority now" in plan.impossible[0]
    else:
        assert bool(plan.refusals) is refused
        assert not plan.impossible
        assert ("would lose its majority" in " ".join(plan.refusals)) is refused


def test_the_last_node_never_goes() -> None:
    plan = remove_plan(picture("n1"), "n1")
    assert list(plan.impossible) == ["group 1: nobody would be left"]


@pytest.mark.parametrize("plan_of", ["remove", "replace"])
def test_the_last_full_copy_of_a_pack_is_not_given_up(plan_of: str) -> None:
    def lost(status: core_pb2.CoreStatus) -> list[str]:
        plan = (
            remove_plan(status, "n3")
            if plan_of == "remove"
            else replace_plan(status, "n3", "n3@new")
        )
        return list(plan.refusals)

    three = ("n1", "n2", "n3")
    last = ["group 1: the last full copy of 1 packs would go"]
    # Everybody who stays lacks it.
    assert lost(picture(*three, missing={"n1": [PACK], "n2": [PACK]})) == last
    # One who stays has it; each lacks another.
    assert lost(picture(*three, missing={"n1": [PACK]})) == []
    assert lost(picture(*three, missing={"n1": [PACK], "n2": [OTHER_PACK]})) == []
    # Who might have it is not here, or has not come that far: not counted on.
    assert last[0] in lost(picture(*three, dead=("n2",), missing={"n1": [PACK]}))
    assert lost(picture(*three, behind=("n2",), missing={"n1": [PACK]})) == last


def test_a_node_that_lacks_more_packs_than_it_names_is_no_full_copy() -> None:
    """It names a thousand at most: that it did not name one was taken for having it."""
    status = picture("n1", "n2", "n3", missing={"n1": [PACK], "n2": [OTHER_PACK]})
    status.views[1].groups[0].packs_missing = 2000
    assert "the last full copy" in remove_plan(status, "n3").refusals[0]


def test_who_is_there_or_is_not_there_is_said() -> None:
    three = picture("n1", "n2", "n3")
    assert "is a member already" in add_plan(three, "n2", "n2@b", keep_learner=False).impossible[0]
    assert "there is no node 'n9'" in remove_plan(three, "n9").impossible[0]
    assert "there is no node 'n9'" in promote_plan(three, "n9").impossible[0]
    assert "votes already" in promote_plan(three, "n2").impossible[0]
    assert "nothing to replace" in replace_plan(three, "n2", "n2@a").impossible[0]
    assert "there is no node 'n9'" in replace_plan(three, "n9", "n9@a").impossible[0]
    assert "there is no node 'n9'" in drain_plan(three, "n9", draining=True).impossible[0]
    learner = picture("n1", "n2", "n3", "n4", learners=("n4",))
    promotion = promote_plan(learner, "n4")
    assert not promotion.impossible
    assert "after promotion 4 voters, majority 3" in promotion.groups[0].arithmetic


def test_a_dead_learner_that_would_vote_is_refused_when_it_costs_the_majority() -> None:
    status = picture("n1", "n2", "n3", "n4", dead=("n3", "n4"), learners=("n4",))
    assert "would lose its majority" in promote_plan(status, "n4").refusals[0]


def test_somebody_stays_who_may_lead() -> None:
    drained = picture("n1", "n2", "n3", drained=("n2", "n3"))
    assert "nobody would be left who may lead" in remove_plan(drained, "n1").refusals[0]
    assert "no other node" in drain_plan(drained, "n1", draining=True).impossible[0]
    assert not drain_plan(picture("n1", "n2", "n3"), "n1", draining=True).impossible


def test_the_leadership_goes_to_a_voter_that_may_have_it() -> None:
    status = picture("n1", "n2", "n3", "n4", dead=("n3",), learners=("n4",), drained=("n2",))
    for name in ("n2", "n3", "n4", "n9"):
        assert "no voter that may lead" in transfer_plan(status, (1,), name).impossible[0]
    assert "nobody else can lead" in transfer_plan(status, (1,), "").impossible[0]
    assert not transfer_plan(picture("n1", "n2"), (1,), "n2").impossible


def test_what_leaves_no_failure_to_tolerate_is_warned_of() -> None:
    plan = remove_plan(picture("n1", "n2", "n3"), "n3")
    assert list(plan.warnings) == ["group 1 would tolerate no failure"]
    assert "n1 hands over what it leads" in list(remove_plan(picture("n1", "n2"), "n1").steps)

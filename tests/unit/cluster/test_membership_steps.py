"""What a leader does next for the members that the directory wants."""

from __future__ import annotations

import dataclasses

from quorepo.cluster.formation import voter
from quorepo.cluster.membership_steps import Step, is_done, next_step, without
from quorepo.cluster.raft.interface import GroupStatus, ReplicaStatus
from quorepo.cluster.rounds import Rounds
from quorepo.cluster.state.machine_membership import CANCELLING, RUNNING
from quorepo.cluster.state.members import ChangeRow, Intentions
from quorepo.internal.v1 import log_pb2

ME = "n1@a"
ADD, PROMOTE = log_pb2.MEMBERSHIP_KIND_ADD, log_pb2.MEMBERSHIP_KIND_PROMOTE
REMOVE, REPLACE = log_pb2.MEMBERSHIP_KIND_REMOVE, log_pb2.MEMBERSHIP_KIND_REPLACE


def configuration(*ids: str, learners: tuple[str, ...] = ()) -> log_pb2.Configuration:
    made = log_pb2.Configuration()
    for replica_id in (*ids, *learners):
        replica = voter(replica_id.partition("@")[0], replica_id, f"{replica_id}:1")
        replica.votes = replica.may_lead = replica_id in ids
        made.replicas.append(replica)
    return made


def status(
    of: log_pb2.Configuration, silent: tuple[str, ...] = (), lag: int = 0, low: bool = False
) -> GroupStatus:
    replicas = tuple(
        ReplicaStatus(
            replica_id=r.replica_id,
            node=r.node,
            votes=r.votes,
            match_index=1000 - (0 if r.votes else lag),
            applied_index=1000,
            connected=r.replica_id not in silent,
            disk_low=low and not r.votes,
        )
        for r in of.replicas
    )
    return GroupStatus(1, "leader", ME, 1, 1000, 1000, 1000, of, replicas)


def change(
    kind: int, replica_id: str, *, former: str = "", keep: bool = False, state: int = RUNNING
) -> ChangeRow:
    node = replica_id.partition("@")[0]
    return ChangeRow(
        b"i" * 16, kind, node, replica_id, former, f"{node}:1", keep, 0, "admin", state, 1, 1, 0
    )


def step(
    of: GroupStatus,
    running: ChangeRow | None,
    draining: tuple[str, ...] = (),
    kept: tuple[str, ...] = (),
    *,
    others_done: bool = True,
    behind: bool = False,
) -> Step | None:
    wanted = Intentions(running, frozenset(draining), frozenset(kept))
    learners = frozenset(r.replica_id for r in of.replicas if not r.votes)
    return next_step(
        of, wanted, ME, others_done=others_done, caught_up=frozenset() if behind else learners
    )


THREE = configuration(ME, "n2@b", "n3@c")


def test_a_newcomer_is_a_learner_first_and_then_votes() -> None:
    added = step(status(THREE), change(ADD, "n4@d"))
    assert added is not None
    assert added.configuration is not None
    assert (added.kind, added.change_id, added.actor) == ("add", b"i" * 16, "admin")
    assert not added.configuration.replicas[3].votes
    promoted = step(status(added.configuration), change(ADD, "n4@d"))
    assert promoted is not None
    assert promoted.configuration is not None
    assert promoted.kind == "promote"
    assert is_done(change(ADD, "n4@d"), promoted.configuration)


def test_a_newcomer_that_is_not_ready_is_not_counted() -> None:
    four = configuration(ME, "n2@b", "n3@c", learners=("n4@d",))
    for picture, words in (
        (status(four, lag=500), "500 entries behind"),
        (status(four, silent=("n4@d",)), "not reachable"),
        (status(four, low=True), "no room"),
    ):
        waits = step(picture, change(ADD, "n4@d"))
        assert waits is not None
        assert waits.kind == "wait"
        assert words in waits.reason


def test_a_newcomer_that_lacks_one_entry_may_lack_all_packs() -> None:
    """It was promoted with 64 entries to go, whatever they named, and held up the majority."""
    four = configuration(ME, "n2@b", "n3@c", learners=("n4@d",))
    waits = step(status(four, lag=1), change(ADD, "n4@d"), behind=True)
    assert waits is not None
    assert (waits.kind, waits.reason) == ("wait", "it fetches the packs that the log names")


def test_a_learner_has_caught_up_when_a_round_takes_it_little_time() -> None:
    now = 0.0
    rounds = Rounds(lambda: now)
    four = configuration(ME, "n2@b", "n3@c", learners=("n4@d",))
    assert rounds.caught_up(status(four, lag=3)) == frozenset()
    now = 60.0  # it fetched a large pack
    assert rounds.caught_up(status(four)) == frozenset()
    now = 60.1  # and nothing else came meanwhile
    assert rounds.caught_up(status(four)) == {"n4@d"}
    # A few entries behind a log that grows is caught up all the same.
    growing = dataclasses.replace(status(four), last_index=1005)
    assert rounds.caught_up(growing) == {"n4@d"}
    # A pause begins it anew, and so does another leader.
    assert rounds.caught_up(status(four, silent=("n4@d",))) == frozenset()
    assert rounds.caught_up(status(four, lag=1)) == frozenset()
    assert rounds.caught_up(dataclasses.replace(status(four), role="follower")) == frozenset()
    assert rounds.caught_up(status(four)) == {"n4@d"}


def test_a_learner_that_is_kept_one_stays() -> None:
    four = configuration(ME, "n2@b", "n3@c", learners=("n4@d",))
    assert step(status(four), change(ADD, "n4@d", keep=True), kept=("n4@d",)) is None
    assert is_done(change(ADD, "n4@d", keep=True), four)
    assert step(status(four), None, kept=("n4@d",)) is None
    promoted = step(status(four), change(PROMOTE, "n4@d"))
    assert promoted is not None
    assert promoted.kind == "promote"


def test_a_leader_hands_over_before_it_goes() -> None:
    gone = step(status(THREE), change(REMOVE, ME))
    assert gone is not None
    assert (gone.kind, gone.target) == ("transfer", "n3@c")
    nobody = step(status(THREE, silent=("n2@b", "n3@c")), change(REMOVE, ME))
    assert nobody is not None
    assert nobody.kind == "wait"


def test_removal_waits_when_it_would_cost_the_majority() -> None:
    waits = step(status(THREE, silent=("n2@b",)), change(REMOVE, "n3@c"))
    assert waits is not None
    assert waits.reason == "2 voters would be left, majority 2, but only 1 can be reached"
    dead = step(status(THREE, silent=("n2@b",)), change(REMOVE, "n2@b"))
    assert dead is not None
    assert dead.kind == "remove"


def test_the_directory_lets_a_replica_go_last() -> None:
    waits = step(status(THREE), change(REMOVE, "n2@b"), others_done=False)
    assert waits is not None
    assert waits.kind == "wait"


def test_the_leader_that_goes_does_not_wait_for_the_groups_that_let_it_go_already() -> None:
    """It never hears of it: it led the directory, waited, and its removal never ended."""
    gone = step(status(THREE), change(REMOVE, ME), others_done=False)
    assert gone is not None
    assert gone.kind == "transfer"


def test_replace_removes_the_old_replica_first_and_for_good() -> None:
    running = change(REPLACE, "n2@new", former="n2@b")
    first = step(status(THREE, silent=("n2@b",)), running)
    assert first is not None
    assert first.configuration is not None
    assert first.kind == "remove"
    assert list(first.configuration.removed_replica_ids) == ["n2@b"]
    second = step(status(first.configuration), running)
    assert second is not None
    assert second.kind == "add"


def test_a_cancelled_newcomer_leaves_whatever_it_became() -> None:
    running = change(ADD, "n4@d", state=CANCELLING)
    for four in (
        configuration(ME, "n2@b", "n3@c", learners=("n4@d",)),
        configuration(ME, "n2@b", "n3@c", "n4@d"),
    ):
        gone = step(status(four), running)
        assert gone is not None
        assert gone.kind == "remove"
    assert is_done(running, without(configuration(ME, "n4@d"), "n4@d"))


def test_a_drained_node_is_not_elected_and_hands_over() -> None:
    marked = step(status(THREE), None, draining=("n2",))
    assert marked is not None
    assert marked.configuration is not None
    assert [r.may_lead for r in marked.configuration.replicas] == [True, False, True]
    back = step(status(marked.configuration), None)
    assert back is not None
    assert back.configuration == THREE
    leads = step(status(THREE), None, draining=("n1", "n3"))
    assert leads is not None
    assert (leads.kind, leads.target) == ("transfer", "n2@b")

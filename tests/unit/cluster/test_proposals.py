"""What the core concludes from attempts: applied, certainly not applied, or unknown."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from quorepo.cluster.peer.clients import PeerAddress
from quorepo.cluster.proposals import ProposalDriver
from quorepo.cluster.raft.interface import GroupStatus, Outcome, PackNeed, Proposal
from quorepo.internal.v1 import log_pb2, peer_pb2
from quorepo.storage.errors import InvalidArgument, Rejected, Unavailable

ME, OTHER, THIRD = "n1@a", "n2@b", "n3@c"
NEED = PackNeed("repository", b"d" * 32, b"i" * 32, 10, 10)


def configuration() -> log_pb2.Configuration:
    return log_pb2.Configuration(
        replicas=[
            log_pb2.Replica(
                replica_id=replica, node=replica[:2], peer_address=replica, votes=True,
                stores_packs=True, may_lead=True,
            )
            for replica in (ME, OTHER, THIRD)
        ]
    )  # fmt: skip


class FakeHost:
    """Answers attempts from a script; the last answer repeats."""

    def __init__(self, *answers: Proposal, leader: str | None = OTHER) -> None:
        self.answers = list(answers)
        self.leader = leader
        self.payloads: list[bytes] = []

    def propose(self, group: int, payload: bytes, timeout_s: float) -> Future[Proposal]:
        self.payloads.append(payload)
        future: Future[Proposal] = Future()
        future.set_result(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
        return future

    def status(self, group: int) -> GroupStatus:
        return GroupStatus(group, "follower", self.leader, 1, 1, 1, 1, configuration(), ())


class FakeStager:
    def __init__(self, accepts: Callable[[str], bool] = lambda address: True) -> None:
        self.accepts = accepts
        self.staged: list[str] = []
        self.kept: list[tuple[bytes, bytes]] = []

    async def keep(self, header: peer_pb2.PackHeader, data: bytes) -> None:
        self.kept.append((header.digest, data))

    async def stage(self, peer: PeerAddress, header: peer_pb2.PackHeader) -> None:
        await asyncio.sleep(0)
        if not self.accepts(peer.address):
            raise Unavailable(f"{peer} is down")
        self.staged.append(peer.address)


class Ignored:
    def proposed(self, group: int, outcome: str, seconds: float) -> None:
        pass


def driver(host: FakeHost, stager: FakeStager | None = None) -> ProposalDriver:
    any_host: Any = host
    return ProposalDriver(any_host, stager or FakeStager(), ME, Ignored())


def command(packs: int = 0) -> log_pb2.Command:
    addition = log_pb2.PackAddition(digest=NEED.digest, index_digest=NEED.index_digest)
    transaction = log_pb2.Transaction(repository_id="repository", packs_added=[addition] * packs)
    return log_pb2.Command(version=1, request_id=b"r" * 16, transaction=transaction)


NO_LEADER = Proposal(Outcome.NOT_APPLIED, reason="no-leader")
UNKNOWN = Proposal(Outcome.UNKNOWN, reason="leader-changed")
APPLIED = Proposal(Outcome.APPLIED, index=7, term=1, result=log_pb2.Result())


async def test_attempts_are_repeated_until_one_is_applied() -> None:
    host = FakeHost(NO_LEADER, UNKNOWN, APPLIED)
    answer = await driver(host).propose(1, command(), 5.0)
    assert answer.outcome is Outcome.APPLIED
    assert answer.index == 7
    assert len(set(host.payloads)) == 1, "every attempt carries the same request id"


async def test_request_is_certainly_not_applied_only_if_no_attempt_was_unknown() -> None:
    answer = await driver(FakeHost(NO_LEADER)).propose(1, command(), 0.1)
    assert (answer.outcome, answer.reason) == (Outcome.NOT_APPLIED, "no-leader")
    answer = await driver(FakeHost(UNKNOWN, NO_LEADER)).propose(1, command(), 0.1)
    assert answer.outcome is Outcome.UNKNOWN


async def test_refusal_for_good_is_not_repeated() -> None:
    host = FakeHost(Proposal(Outcome.NOT_APPLIED, reason="denied"))
    answer = await driver(host).propose(1, command(), 5.0)
    assert answer.outcome is Outcome.NOT_APPLIED
    assert len(host.payloads) == 1


async def test_packs_go_to_a_new_leader_before_the_next_attempt() -> None:
    stager = FakeStager()
    host = FakeHost(Proposal(Outcome.NOT_APPLIED, reason="packs-missing"), APPLIED)
    answer = await driver(host, stager).propose(1, command(packs=1), 5.0)
    assert answer.outcome is Outcome.APPLIED
    assert OTHER in stager.staged


async def test_pack_is_replicated_once_a_majority_with_the_leader_has_it() -> None:
    names = await driver(FakeHost(APPLIED), FakeStager(lambda a: a == OTHER)).replicate_pack(
        1, NEED, 5.0
    )
    assert names == ["n1", "n2"]


@pytest.mark.parametrize(("leader", "accepting"), [(OTHER, THIRD), (None, OTHER), (ME, "nobody")])
async def test_pack_without_a_majority_or_the_leader_is_refused(
    leader: str | None, accepting: str
) -> None:
    host = FakeHost(APPLIED, leader=leader)
    with pytest.raises(Unavailable, match="nothing was changed"):
        await driver(host, FakeStager(lambda a: a == accepting)).replicate_pack(1, NEED, 0.2)


def replacing() -> log_pb2.Command:
    addition = log_pb2.PackAddition(digest=NEED.digest, index_digest=NEED.index_digest)
    body = log_pb2.ReplacePacks(repository_id="repository", removed=[b"o" * 32], added=[addition])
    return log_pb2.Command(version=1, request_id=b"r" * 16, replace_packs=body)


class RefusingStager(FakeStager):
    """One peer says that the replacement is wrong."""

    async def stage(self, peer: PeerAddress, header: peer_pb2.PackHeader) -> None:
        await super().stage(peer, header)
        assert log_pb2.Command.FromString(header.replacement) == replacing()
        if peer.address == THIRD:
            raise InvalidArgument("the replacement is refused")


async def test_replacement_goes_to_every_replica_that_answers() -> None:
    stager = FakeStager()
    names = await driver(FakeHost(NO_LEADER), stager).replicate_replacement(
        1, NEED, replacing(), 5.0
    )
    assert (names, sorted(stager.staged)) == (["n1", "n2", "n3"], [OTHER, THIRD])
    stager = FakeStager(lambda address: address != THIRD)
    names = await driver(FakeHost(NO_LEADER), stager).replicate_replacement(
        1, NEED, replacing(), 5.0
    )
    assert names == ["n1", "n2"]


async def test_replacement_needs_the_leader() -> None:
    stager = FakeStager(lambda address: address != OTHER)
    with pytest.raises(Unavailable, match="leader may lack it"):
        await driver(FakeHost(NO_LEADER), stager).replicate_replacement(1, NEED, replacing(), 5.0)


async def test_replacement_that_one_replica_refuses_is_not_proposed() -> None:
    with pytest.raises(Rejected, match="refuses the new pack"):
        await driver(FakeHost(NO_LEADER), RefusingStager()).replicate_replacement(
            1, NEED, replacing(), 5.0
        )

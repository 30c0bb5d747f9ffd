"""Clients: requests with ids, attempts at them on any node, until each has one answer.

Owns: what is asked, and what the askers were told. An unknown outcome is asked again under the
same request id, on any node; every answer to one request must be the same.
"""

from __future__ import annotations

import dataclasses
import functools
from concurrent.futures import Future
from typing import TYPE_CHECKING

from support.state_log import REPOSITORY, command, oid, pack, transaction, update

from quorepo.cluster.raft.interface import Outcome, Proposal
from quorepo.internal.v1 import log_pb2
from simulation.events import Violation

if TYPE_CHECKING:
    from simulation.cluster import Cluster
    from simulation.node import Node

__all__ = ["Attempt", "Clients", "Request"]

_ATTEMPTS_MAX = 4
_REPOSITORIES = [REPOSITORY, "s" * 32]


@dataclasses.dataclass(eq=False)
class Request:
    """What a client wants once, however often it asks."""

    id: bytes
    group: int
    command: log_pb2.Command
    packs: tuple[bytes, ...]
    attempts: int = 0
    open: int = 0
    planned: int = 0  # attempts that will begin soon
    unknown: bool = False  # some attempt may have been applied
    answer: bytes | None = None
    given_up: bool = False

    @property
    def needs_answer(self) -> bool:
        return self.unknown and self.answer is None and not self.given_up


@dataclasses.dataclass(eq=False)
class Attempt:
    """One proposal of a request."""

    request: Request
    number: int
    node: Node
    life: int
    ends_by: float
    verdict: str = ""

    def __str__(self) -> str:
        return f"attempt {self.number} at request {int.from_bytes(self.request.id, 'big')}"


class Clients:
    """All clients of a schedule."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._rng = cluster.rng
        self.requests: list[Request] = []
        self._open: dict[Attempt, None] = {}
        self.proposals = 0
        self.settling = False

    # ---- asking

    def request(self, node: Node) -> Request:
        """A new request, first seen by `node`, proposed there."""
        number = len(self.requests) + 1
        rng, setting = self._rng, self._cluster.setting
        group = rng.choice(setting.groups)
        packs: tuple[bytes, ...] = ()
        if group == 0:
            path = f"p{rng.randint(0, 20)}"
            body: log_pb2.ReservePath | log_pb2.Transaction
            body = log_pb2.ReservePath(path=path, repository_id=f"{number:032}", group=1)
        else:
            body = self._transaction(number)
            if setting.packs and rng.random() < 0.3:
                body.packs_added.append(pack(number))
                packs = (body.packs_added[0].digest,)
        encoded = command(body, number, first_seen_ms=node.clock_ms())
        request = Request(encoded.request_id, group, encoded, packs)
        self.requests.append(request)
        self._stage(node, packs)
        self.attempt(request, node)
        return request

    def _transaction(self, number: int) -> log_pb2.Transaction:
        rng, setting = self._rng, self._cluster.setting
        kind = rng.random()
        if kind < 0.5:  # its own ref: a second application would be refused
            change = update(f"refs/heads/own{number}", number)
        elif kind < 0.8:
            change = update(f"refs/heads/shared{rng.randint(0, 5)}", number, any_old=True)
        else:
            change = update(f"refs/heads/shared{rng.randint(0, 5)}", number, old=number - 1)
        result = transaction(change, repository_id=rng.choice(_REPOSITORIES))
        if setting.payload_bytes_max:
            result.push_options.append("x" * rng.randint(0, setting.payload_bytes_max))
        assert oid(number)
        return result

    def _stage(self, node: Node, packs: tuple[bytes, ...]) -> None:
        """The pack goes to the nodes before the entry does; some miss it, sometimes the leader."""
        if not packs:
            return
        for other in self._cluster.nodes.values():
            if other is node or (other.life and self._rng.random() < 0.75):
                other.packs.update(packs)

    def attempt(self, request: Request, node: Node) -> None:
        """Proposes it on `node`."""
        assert node.host is not None
        rng, events = self._rng, self._cluster.events
        request.attempts += 1
        request.open += 1
        self.proposals += 1
        # Makes attempts different in the log.
        request.command.actor = f"client, attempt {request.attempts}"
        payload = request.command.SerializeToString(deterministic=True)
        timeout_s = 2.0 if self.settling else rng.choice((0.02, 0.5, 2.0, 3.0))
        attempt = Attempt(request, request.attempts, node, node.life, events.now + timeout_s)
        self._cluster.rules.attempts[request.group, payload] = attempt
        self._open[attempt] = None
        future = node.host.propose(request.group, payload, timeout_s)
        future.add_done_callback(functools.partial(self._told, attempt, payload))
        node.wake()

    # ---- being told

    def _told(self, attempt: Attempt, payload: bytes, future: Future[Proposal]) -> None:
        try:
            self._verdict(attempt, payload, future.result())
        except Exception as error:  # a future would swallow it
            self._cluster.rules.fail(f"{type(error).__name__}: {error}")

    def _verdict(self, attempt: Attempt, payload: bytes, verdict: Proposal) -> None:
        if attempt not in self._open:
            return  # its node died, the client has gone on
        rules, request = self._cluster.rules, attempt.request
        del self._open[attempt]
        request.open -= 1
        attempt.verdict = verdict.outcome.value
        self._cluster.count(f"{verdict.outcome.name} {verdict.reason}".strip())
        events = self._cluster.events
        events.note(f"{attempt}: {verdict.outcome.name} {verdict.index} {verdict.reason}")
        if verdict.outcome is Outcome.NOT_APPLIED:
            if self.settling and verdict.reason == "packs-missing":
                self._replicate_again(request)
            if (request.group, payload) in rules.committed_attempts:
                raise Violation(f"verdicts: {attempt} was refused, and is committed")
            if not request.unknown and self._rng.random() < 0.5 and not self.settling:
                return  # the client gives up: nothing happened
        elif verdict.outcome is Outcome.UNKNOWN:
            request.unknown = True
        else:
            self._answered(attempt, payload, verdict)
            if self._rng.random() < 0.95:
                return  # else: a confused client asks again
        self.ask_again_later(request)

    def _answered(self, attempt: Attempt, payload: bytes, verdict: Proposal) -> None:
        rules, request = self._cluster.rules, attempt.request
        key = (request.group, verdict.index)
        entry = rules.committed.get(key)
        if entry is None or entry.data != payload or entry.term != verdict.term:
            raise Violation(f"verdicts: {attempt} was acknowledged as {verdict.index}: {entry}")
        answer = verdict.result.SerializeToString(deterministic=True)
        if rules.results.get(key) != answer:
            raise Violation(f"verdicts: {attempt} got another result than the state gave")
        rules.acknowledged[request.group] = max(rules.acknowledged[request.group], verdict.index)
        if verdict.result.rejection.reason == log_pb2.REJECTION_REASON_REQUEST_EXPIRED:
            request.given_up = True  # unknown for ever; only with clocks beyond the window
            return
        if request.answer not in (None, answer) and not rules.may_expire:
            raise Violation(f"exactly once: {attempt} got a second, other answer")
        request.answer = answer

    def _replicate_again(self, request: Request) -> None:
        """As `ProposalDriver` does before the next attempt: the leader holds the packs then. Before
        the end, with links that are cut, that may fail for long."""
        leader = self._cluster.leader(request.group)
        if leader is not None:
            leader.packs.update(request.packs)

    def ask_again_later(self, request: Request) -> None:
        if request.attempts < _ATTEMPTS_MAX or self.settling:
            request.planned += 1
            delay_s = self._rng.uniform(0.01, 0.5)
            self._cluster.events.after(delay_s, functools.partial(self._ask_again, request))

    def _ask_again(self, request: Request) -> None:
        request.planned -= 1
        cluster = self._cluster
        # At rest only members: one that was removed does not hear what becomes of it.
        members = cluster.members(request.group) if self.settling else []
        node = self._rng.choice(members) if members else cluster.some_node()
        if node is None or not node.life or (self.settling and request.answer is not None):
            if request.needs_answer:
                self.ask_again_later(request)
            return
        node.packs.update(request.packs)
        self.attempt(request, node)

    def node_ended(self, node: Node) -> None:
        """Nobody on this node is told anything any more: unknown."""
        for attempt in [attempt for attempt in self._open if attempt.node is node]:
            del self._open[attempt]
            attempt.request.open -= 1
            attempt.request.unknown = True
            attempt.verdict = "node ended"
            self.ask_again_later(attempt.request)

    # ---- the end

    def settle(self) -> None:
        """From here on everybody insists on an answer."""
        self.settling = True
        for request in self.requests:
            if request.needs_answer and not request.open:
                self.ask_again_later(request)

    def unanswered(self) -> list[Request]:
        return [r for r in self.requests if r.needs_answer or r.open]

    def unsettled(self) -> list[Request]:
        """What may still come into a log: nothing is at rest before this is empty."""
        return [r for r in self.requests if r.needs_answer or r.open or r.planned]

    def check_deadlines(self) -> None:
        """Every wait ends by its deadline, when the process runs."""
        now = self._cluster.events.now
        for attempt in self._open:
            node = attempt.node
            if attempt.ends_by + 1.0 < now and node.busy_until < now and node.life:
                raise Violation(f"deadlines: {attempt} at {node} never got a verdict")

    def check_answers(self) -> None:
        """Acknowledged is in the log and applied; a request that nobody may have applied is not."""
        rules = self._cluster.rules
        for request in self.requests:
            key = (request.group, request.id)
            index = rules.first_index.get(key)
            if request.answer is not None:
                if index is None:
                    raise Violation("durability: an acknowledged request is nowhere")
                if rules.results[request.group, index] != request.answer and not rules.may_expire:
                    raise Violation(f"exactly once: the answer is not the one of entry {index}")
            elif request.open:
                continue  # its answer is on its way (20261124012027)
            elif index is not None and not request.unknown and not request.given_up:
                raise Violation(f"verdicts: a refused request is entry {index}")

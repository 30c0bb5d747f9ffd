"""The seeds are worth something: each rule that is taken out of the engine is found missing.

A mutant replaces one safety rule by what a hurried author might write. `test_group_seeds.py`
passing means little unless the same stories fail for every one of these.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

import pytest
from support import raft_cluster
from support.raft_schedule import run_schedule

from quorepo.cluster.raft import (
    appending,
    commands,
    configuration,
    elections,
    engine,
    membership,
    read_index,
)
from quorepo.cluster.raft.interface import GroupStart

pytestmark = pytest.mark.slow

SEEDS = 40
Patch = Callable[[pytest.MonkeyPatch], None]


def source(owner: type, method: str, old: str, new: str) -> Patch:
    """The method with one piece of its source replaced."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        module = inspect.getmodule(owner)
        assert isinstance(module, ModuleType)
        text = textwrap.dedent(inspect.getsource(getattr(owner, method)))
        assert old in text, f"{method} changed: bring this mutant up to date"
        namespace: dict[str, Any] = {}
        exec(text.replace(old, new), module.__dict__, namespace)
        assert isinstance(namespace[method], FunctionType)
        monkeypatch.setattr(owner, method, namespace[method])

    return patch


def votes_forgotten_by_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def store(self: raft_cluster.MemoryVotes, term: int, voted_for: str | None) -> None:
        self._disk.votes[self._group] = (term, None)

    monkeypatch.setattr(raft_cluster.MemoryVotes, "store", store)


def configuration_of_applied_entries_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(self: membership.Membership, start: GroupStart) -> None:
        base = start.applied_configuration or start.founding
        self._leaving, self._replicas, self.configuration_version = {}, {}, 0
        self.history = configuration.ConfigurationHistory(start.applied_index, base)
        self.adopt_configuration()

    monkeypatch.setattr(membership.Membership, "_begin_membership", begin)


def learners_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    original = engine.Engine.set_peers

    def set_peers(self: Any, voters: set[Any], learners: set[Any]) -> None:
        original(self, voters | learners, set())

    monkeypatch.setattr(engine.Engine, "set_peers", set_peers)


APPENDING, COMMANDS = appending.Appending, commands.Commands

MUTANTS: dict[str, Patch] = {
    "acknowledges before the sync": source(
        APPENDING,
        "_queue_answer",
        "self._answers.append((node, answer))",
        "self._send_dict(node, answer)",
    ),
    "applies what is not durable here": source(
        COMMANDS,
        "hand_over",
        "min(self.commit_index, self.log.durable_index)",
        "self.commit_index",
    ),
    "removes what matches (S1)": source(
        APPENDING,
        "_take_entries",
        "changed = False\n",
        "changed = False\n"
        "    if last_index > prev:\n"
        "        self.log.truncate_from(prev + 1, self.commit_index)\n"
        "        changed = self.history.truncate_from(prev + 1)\n"
        "        last_index = prev\n",
    ),
    "keeps what contradicts the leader": source(
        APPENDING, "_take_entries", "if self.log.term_at(index) == term:", "if True:"
    ),
    "does not compare the entry before": source(
        APPENDING, "_on_append_entries", "elif self.log.term_at(prev) != prev_term:", "elif False:"
    ),
    "commits what was not compared (S2)": source(
        APPENDING,
        "_on_append_entries",
        'min(message["commit_index"], match_index)',
        'min(message["commit_index"], self.log.last_index)',
    ),
    "follower takes entries without packs": source(
        APPENDING, "_holds_packs", "if not needs:", "if True:"
    ),
    "leader appends without packs": source(
        COMMANDS, "_refusal", "return Refusal.PACKS_MISSING if missing else None", "return None"
    ),
    "commits entries of older terms by counting": source(
        engine.Engine, "_SyncObj__getEntries", "self.log.term_at(start)", "self.current_term"
    ),
    "votes for a log that is behind": source(
        elections.Elections, "_is_up_to_date", "return bool(", "return True or bool("
    ),
    "votes twice in a term": source(
        elections.Elections, "_on_request_vote", "if self.voted_for != node.id:", "if False:"
    ),
    "votes are not durable": votes_forgotten_by_the_disk,
    "reads without asking the voters": source(
        read_index.ReadIndex, "_begin_round", "{self.me})", "{self.me, *self.other_voters})"
    ),
    "two changes of members at once (S3)": source(
        membership.Membership,
        "why_denied",
        "if self.history.current_index > self.commit_index:",
        "if False:",
    ),
    "changes members before its no-op is committed": source(
        membership.Membership,
        "why_denied",
        "if self.no_op_index is None or self.commit_index < self.no_op_index:",
        "if False:",
    ),
    "configuration from applied entries only (S3)": configuration_of_applied_entries_only,
    "learners are counted": learners_are_counted,
    "an unanswered forward counts as refused": source(
        COMMANDS, "forwards_unanswered", "Outcome.UNKNOWN", "Outcome.NOT_APPLIED"
    ),
    "a new term refuses what is still open": source(
        COMMANDS,
        "note_applied",
        "if self._term_of(up_to_index) != term_before:\n        "
        "self._refuse_overtaken(self._term_of(up_to_index))",
        "self._refuse_overtaken(self.current_term)",
    ),
    "a result by index, whatever the term": source(
        COMMANDS, "note_applied", "if term == self._term_of(index):", "if True:"
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_missing_rule_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS[name](monkeypatch)
    for seed in range(SEEDS):
        for members_change in (False, True):
            try:
                run_schedule(seed, membership=members_change)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                return
    pytest.fail(f"no seed below {SEEDS} notices that the engine {name}")

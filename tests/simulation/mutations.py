"""Each safety rule taken out of the product, one by one: the simulator has to notice every time.

`python -m simulation.mutations` runs fresh schedules against each mutant until one fails, and
prints after how many. A mutant that survives means that the schedules, or the rules, are too weak.
Owns the table; what a mutant changes is the text of one method, so that a mutant whose method has
changed says so instead of testing nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import sys
import textwrap
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from quorepo.cluster.raft import (
    appending,
    commands,
    configuration,
    durable,
    elections,
    engine,
    host,
    journal,
    membership,
    read_index,
    recovery,
    replication,
    segment,
    segment_writer,
    snapshots,
    votes,
)
from quorepo.cluster.snapshot import staging
from quorepo.cluster.state import machine

__all__ = ["MUTATIONS", "NARROW", "apply_mutation", "hunt"]

Change = Callable[[], None]


def source(owner: Any, name: str, old: str, new: str) -> Change:
    """The method or function with one piece of its source replaced."""

    def change() -> None:
        module = owner if isinstance(owner, ModuleType) else inspect.getmodule(owner)
        assert module is not None
        text = textwrap.dedent(inspect.getsource(getattr(owner, name)))
        if old not in text:
            raise LookupError(f"{name} has changed: bring this mutation up to date")
        namespace: dict[str, Any] = {}
        exec(text.replace(old, new), module.__dict__, namespace)
        original = getattr(owner, name)
        setattr(owner, name, namespace[name])
        if isinstance(owner, ModuleType):  # others have imported it by name
            for other in list(sys.modules.values()):
                if getattr(other, name, None) is original:
                    setattr(other, name, namespace[name])

    return change


def _configuration_of_applied_entries_only() -> None:
    def begin(self: Any, start: Any) -> None:
        base = start.applied_configuration or start.founding
        self._leaving, self._replicas, self.configuration_version = {}, {}, 0
        self.history = configuration.ConfigurationHistory(start.applied_index, base)
        self.adopt_configuration()

    membership.Membership._begin_membership = begin  # type: ignore[method-assign]


def _learners_are_counted() -> None:
    original = engine.Engine.set_peers

    def set_peers(self: Any, voters: set[Any], learners: set[Any]) -> None:
        original(self, voters | learners, set())

    engine.Engine.set_peers = set_peers  # type: ignore[method-assign]


def _votes_in_memory() -> None:
    def store(self: Any, term: int, voted_for: str | None) -> None:
        self._exists, self._term, self._voted_for = True, term, voted_for

    votes.VoteFile.store = store  # type: ignore[method-assign]


def _leader_syncs_late() -> None:
    """The check alone is a second wall: a step always ends with a sync, so that goes too."""
    source(
        engine.Engine, "_SyncObj__getEntries", "if start > self.log.durable_index:", "if False:"
    )()
    source(host.RaftHost, "step", "self._journal.sync()", "self._sync_late()")()

    def sync_late(self: Any) -> None:
        leads = any(group.is_leader for group in self._groups.values())
        self._late = leads and not getattr(self, "_late", False)
        if not self._late:
            self._journal.sync()

    vars(host)["RaftHost"]._sync_late = sync_late


def _segment_taken_as_it_is() -> None:
    original = recovery._rewrite

    def rewrite(path: Any, tail: Any) -> tuple[int, int]:
        if tail.kept_bytes == len(tail.data) and tail.cut_batch_offset is None:
            return tail.kept_bytes, tail.last_batch
        return original(path, tail)

    recovery._rewrite = rewrite


_Appending, _Commands = appending.Appending, commands.Commands
_ReadIndex, _Elections = read_index.ReadIndex, elections.Elections
_Journal, _Membership = journal.Journal, membership.Membership

MUTATIONS: dict[str, Change] = {
    # durability
    "acknowledges before the sync": source(
        _Appending,
        "_queue_answer",
        "self._answers.append((node, answer))",
        "self._send_dict(node, answer)",
    ),
    "leader counts itself before its sync": _leader_syncs_late,
    "applies what is not durable here": source(
        _Commands,
        "hand_over",
        "min(self.commit_index, self.log.durable_index)",
        "self.commit_index",
    ),
    "vote file in memory only": _votes_in_memory,
    "folder not synced after a rename": source(
        durable, "replace_durably", "sync_directory(path.parent)", "pass"
    ),
    "new file not synced before its rename": source(
        durable, "replace_durably", "os.fsync(descriptor)", "pass"
    ),
    "journal not synced": source(
        segment_writer.SegmentWriter, "write_batch", "os.fdatasync(self._descriptor)", "pass"
    ),
    "checksums not compared": source(
        segment,
        "decode_record",
        "if zlib.crc32(memoryview(data)[offset + _CRC.size : end], seed) != crc:",
        "if False:",
    ),
    "torn tail not cut": source(
        recovery,
        "_replay",
        "if not is_last or not is_torn(data, segment.header, item):",
        "if True:",
    ),
    "open segment not rewritten at a start": _segment_taken_as_it_is,
    "removal not recorded": source(
        _Journal,
        "truncate_from",
        'self._add(Kind.TRUNCATE, group, index, term_before, b"", log)',
        "pass",
    ),
    "failed sync tried again": source(
        segment_writer.SegmentWriter,
        "write_batch",
        "os.fdatasync(self._descriptor)",
        "try:\n"
        "            os.fdatasync(self._descriptor)\n"
        "        except OSError:\n"
        "            pass",
    ),
    # logs
    "removes what matches (S1)": source(
        _Appending,
        "_take_entries",
        "changed = False\n",
        "changed = False\n"
        "    if last_index > prev:\n"
        "        self.log.truncate_from(prev + 1, self.commit_index)\n"
        "        changed = self.history.truncate_from(prev + 1)\n"
        "        last_index = prev\n",
    ),
    "keeps what contradicts the leader": source(
        _Appending, "_take_entries", "if self.log.term_at(index) == term:", "if True:"
    ),
    "does not compare the entry before": source(
        _Appending, "_on_append_entries", "elif self.log.term_at(prev) != prev_term:", "elif False:"
    ),
    "commits what was not compared (S2)": source(
        _Appending,
        "_on_append_entries",
        'min(message["commit_index"], match_index)',
        'min(message["commit_index"], self.log.last_index)',
    ),
    "commits entries of older terms by counting": source(
        engine.Engine, "_SyncObj__getEntries", "self.log.term_at(start)", "self.current_term"
    ),
    "answers of an older term are counted (S6)": source(
        replication.Replication,
        "_on_append_reply",
        'or message["term"] < self.current_term or',
        "or",
    ),
    # votes
    "votes for a log that is behind": source(
        _Elections, "_is_up_to_date", "return bool(", "return True or bool("
    ),
    "votes twice in a term": source(
        _Elections, "_on_request_vote", "if self.voted_for != node.id:", "if False:"
    ),
    "votes of an older term are counted": source(
        _Elections,
        "_on_response_vote",
        'if not self.is_candidate or message["term"] != self.current_term:',
        "if not self.is_candidate:",
    ),
    "one vote is a majority": source(
        _Elections, "_on_response_vote", "if self.is_majority(self._votes):", "if True:"
    ),
    # packs
    "follower takes entries without packs": source(
        _Appending, "_take_entries", "not self._holds_packs(", "not True and (lambda *_: True)("
    ),
    "leader appends without packs": source(
        _Commands, "_refusal", "return Refusal.PACKS_MISSING if missing else None", "return None"
    ),
    # reads
    "reads without asking the voters": source(
        _ReadIndex, "_begin_round", "{self.me})", "{self.me, *self.other_voters})"
    ),
    "reads before the no-op is committed": source(
        _ReadIndex, "_begin_round", "or self.commit_index < no_op_index", ""
    ),
    "reads confirmed by an older round": source(
        _ReadIndex, "_on_leadership_pong", 'if number > message["round"]:', "if False:"
    ),
    "reads do not wait for the state": source(
        _ReadIndex, "_wait_until_applied", "if self.applied_index >= index:", "if True:"
    ),
    # members
    "two changes of members at once (S3)": source(
        _Membership,
        "why_denied",
        "if self.history.current_index > self.commit_index:",
        "if False:",
    ),
    "changes members before its no-op is committed": source(
        _Membership,
        "why_denied",
        "if self.no_op_index is None or self.commit_index < self.no_op_index:",
        "if False:",
    ),
    "configuration from applied entries only (S3)": _configuration_of_applied_entries_only,
    "learners are counted": _learners_are_counted,
    # snapshots
    "log cut beyond the durable state": source(
        snapshots.Snapshots,
        "compact",
        "limits = [kept, durable_index, self.applied_index",
        "limits = [kept, self.applied_index",
    ),
    "snapshot acknowledged before the switch (D5)": source(
        snapshots.Snapshots,
        "_on_snapshot_offer",
        "self._snapshot_client.offered(",
        'self.acknowledge_to(node, message["index"])\n        self._snapshot_client.offered(',
    ),
    "snapshot in place of committed entries (S2)": source(
        snapshots.Snapshots,
        "begin_install",
        "if self.is_leader or self.installing or index <= self.commit_index:",
        "if self.is_leader or self.installing:",
    ),
    "entries handed over while the state is switched": source(
        _Commands,
        "hand_over",
        "if self.installing or self.handed_over",
        "if self.handed_over",
    ),
    "entries taken while the state is switched": source(
        _Appending, "_on_append_entries", "if self.installing:", "if False:"
    ),
    "switch without a record": source(
        staging.StagedSnapshot,
        "put_into_force",
        'write_durably(self._folder / "SWITCH", self.manifest.SerializeToString())',
        "pass",
    ),
    "interrupted switch left as it is": source(
        staging, "finish_interrupted", "if not record.exists():", "if True:"
    ),
    "received state not compared": source(
        staging.StagedSnapshot,
        "verify",
        "if size != manifest.database_bytes or digest.digest() != manifest.database_digest:",
        "if False:",
    ),
    "log begun anew without a sync": source(
        _Journal, "restart_at", "    self.sync()\n", "    pass\n"
    ),
    # verdicts, exactly once
    "an unanswered forward counts as refused": source(
        _Commands, "forwards_unanswered", "Outcome.UNKNOWN", "Outcome.NOT_APPLIED"
    ),
    "a timeout counts as refused": source(
        commands.Attempt,
        "expire",
        "Outcome.UNKNOWN if self.sent else Outcome.NOT_APPLIED",
        "Outcome.NOT_APPLIED",
    ),
    "a new term refuses what is still open": source(
        _Commands,
        "note_applied",
        "if self._term_of(up_to_index) != term_before:\n        "
        "self._refuse_overtaken(self._term_of(up_to_index))",
        "self._refuse_overtaken(self.current_term)",
    ),
    "a result by index, whatever the term": source(
        _Commands, "note_applied", "if term == self._term_of(index):", "if True:"
    ),
    "request ids are not remembered": source(
        machine, "_known_result", "return None if row is None else", "return None if True else"
    ),
    "log time follows the leader's clock back": source(
        machine, "_advance", "max(position.log_time_ms, entry.time_ms)", "entry.time_ms"
    ),
}

# Not found in 400 schedules each, and not expected of them. A stream keeps its order, so an answer
# of an older term overtakes nothing: the same replica has to lead twice within one delay, or a vote
# split among five to meet a second campaign. An older round counts too much among five only. And a
# state is switched within milliseconds, in which a new leader whose log reaches back would have to
# speak. Unit tests pin these (test_group_replication.py, _elections, _reads, _snapshots).
NARROW = (
    "answers of an older term are counted (S6)",
    "votes of an older term are counted",
    "reads confirmed by an older round",
    "entries handed over while the state is switched",
    "entries taken while the state is switched",
)


def apply_mutation(name: str) -> None:
    """Changes the product in this process, for good."""
    MUTATIONS[name]()


@dataclasses.dataclass(frozen=True, slots=True)
class Catch:
    """How a mutant was found out."""

    name: str
    schedules: int  # until the first violation, at most
    seed: int | None
    violation: str
    seconds: float


def hunt(name: str, *, first: int, seeds: int, processes: int, seconds: float = 1e9) -> Catch:
    """Runs schedules against one mutant until one fails."""
    from simulation.run import run_in_processes

    total = run_in_processes(
        range(first, first + seeds), processes=processes, seconds=seconds, mutation=name
    )
    found = min(total.failed.items(), default=(None, ""))
    return Catch(name, total.schedules, found[0], found[1], total.seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="pieces of names; all mutants without")
    parser.add_argument("--seeds", type=int, default=400, help="schedules for each, at most")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    survivors = 0
    for name in MUTATIONS:
        if arguments.names and not any(piece in name for piece in arguments.names):
            continue
        started = time.monotonic()
        catch = hunt(
            name, first=arguments.first, seeds=arguments.seeds, processes=arguments.processes
        )
        survivors += catch.seed is None
        told = f"seed {catch.seed}: {catch.violation}" if catch.violation else "SURVIVED"
        print(
            f"{name:48} {catch.schedules:4} schedules {time.monotonic() - started:6.1f} s  "
            f"{told[:150]}",
            flush=True,
        )
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())

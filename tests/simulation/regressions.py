"""Seeds that are run every time.

Seed 575 found a fault of the product; the others found faults of the simulator's own rules and
shapes of schedules that come close to one. A seed means a schedule only together with the code
here and in the product; when that changes, its story changes too. So each entry tells what it
showed when it was put here, a fault of the product is pinned by a unit test besides, and mutants
(mutations.py) are the standing proof that schedules find what they should.
"""

from __future__ import annotations

__all__ = ["REGRESSIONS"]

REGRESSIONS: dict[int, str] = {
    14: "a learner that knows only founders has to answer a leader that came later: the way back "
    "to a guest's stream (peer transport, `_admit`)",
    38: "a lost disk that is still counted, while another voter is demoted: the operator's rules",
    53: "compaction while an answer is lost on its way: the leader knows less than the follower "
    "has, and its log no longer reaches back",
    107: "an answer that leaves while an earlier process's torn file is still in the folder",
    136: "commits what was not compared (S2): the seed that found that mutant",
    575: "a move of a quiet group, torn by a full disk: the next start removed segments that still "
    "held acknowledged entries (test_a_quiet_group_whose_move_was_torn_keeps_every_entry)",
    20261124001006: "a learner without anything became a voter: it was few entries behind, and a "
    "whole state (test_learner_that_needs_a_snapshot_is_not_promoted)",
    20261124012027: "a request that a fault had planned came after the end, and was open when all "
    "answers were judged: the simulator's own fault",
    1795541846116: "a vote file renamed by a process that was killed before it synced the "
    "folder, read by the next one, and taken back by a power cut: "
    "test_a_vote_that_a_killed_process_left_unsynced_is_durable_before_it_is_believed",
    1795544476306: "a write refused for want of its pack was asked for again after the last write,"
    " and a member that still fetched that pack passed for stuck: the simulator's own fault, in "
    "its client (the product brings the pack to the leader first) and in its judge",
    239: "compaction and a leader that begins to probe again",
}

"""A process for test_journal_crash.py: works on a journal, and dies where it is told.

Run as: python journal_child.py DIRECTORY STEPS. Prints "acked LAST" for group 1 after each sync.
"""

from __future__ import annotations

import sys
from pathlib import Path

from quorepo.cluster.raft.journal import Journal
from quorepo.cluster.raft.votes import VoteFile

SEGMENT_BYTES = 1200


def main() -> None:
    directory, steps = Path(sys.argv[1]), int(sys.argv[2])
    journal = Journal.open(directory / "journal", segment_bytes_max=SEGMENT_BYTES)
    if journal.last_index(0) == 0:
        journal.append(0, 1, 1, b"quiet")
    votes = VoteFile(directory / "group-1.vote")
    for step in range(steps):
        last = journal.last_index(1)
        term = votes.term + 1
        votes.store(term, f"replica-{term}")
        print("voted", term, flush=True)
        if step % 5 == 4:  # a conflict: the last entry was not acknowledged yet
            journal.append(1, last + 1, term, b"lost")
            journal.truncate_from(1, last + 1)
        for index in range(last + 1, last + 3):
            journal.append(1, index, term, b"%d" % index + bytes(60))
        journal.sync()
        print("acked", journal.durable_index(1), flush=True)
        if step % 4 == 3:  # a group behind a snapshot
            journal.append(2, journal.last_index(2) + 1, term, b"overtaken")
            journal.restart_at(2, 10 * (step + 1), term, b"anew")
        if step % 7 == 6:
            journal.drop_prefix(1, journal.last_index(1) - 1)
    journal.close()


main()

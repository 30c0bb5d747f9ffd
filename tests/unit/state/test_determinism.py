"""The same log gives the same state, byte for byte, however it is cut into batches."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from support.state_log import (
    Body,
    Log,
    Machine,
    RecordingFiles,
    pack,
    replacement,
    transaction,
    update,
)

from quorepo.cluster.raft.interface import Entry
from quorepo.cluster.state.machine import REQUEST_WINDOW_MS
from quorepo.cluster.state.store import StateStore
from quorepo.internal.v1 import log_pb2
from quorepo.storage.layout import GroupLayout

NAMES = ("refs/heads/main", "refs/heads/a", "refs/heads/a/b", "refs/tags/v1")

bodies: st.SearchStrategy[Body] = st.one_of(
    st.builds(
        lambda name, new, repository, packs, atomic: transaction(
            update(name, new, any_old=True),
            update("refs/heads/x", 1),
            repository_id=repository,
            packs=[pack(number) for number in packs],
            atomic=atomic,
        ),
        st.sampled_from(NAMES),
        st.integers(0, 5),
        st.sampled_from(["one", "two", "three"]),
        st.lists(st.integers(1, 5), max_size=2, unique=True),
        st.booleans(),
    ),
    st.just(
        log_pb2.CreateRepository(repository_id="two", object_format=log_pb2.OBJECT_FORMAT_SHA1)
    ),
    st.just(log_pb2.DeleteRepository(repository_id="three")),
    st.just(log_pb2.DeleteRepository(repository_id="one", retention_ms=10_000, path="p")),
    st.just(log_pb2.UndeleteRepository(repository_id="one")),
    st.just(log_pb2.ForkRepository(repository_id="fork", source_id="one")),
    st.just(log_pb2.SetHead(repository_id="two", detached_oid=b"\1" * 20, any_old=True)),
    st.just(log_pb2.SetHead(repository_id="two", branch=b"refs/heads/b", any_old=True)),
    st.just(log_pb2.UpdateRepository(repository_id="one", description="d")),
    st.just(log_pb2.UpdateRepository(repository_id="two", read_only=True)),
    st.builds(
        lambda repository, removed, added: replacement(removed, [added], repository_id=repository),
        st.sampled_from(["one", "two", "three"]),
        st.lists(st.integers(1, 5), min_size=1, max_size=2, unique=True),
        st.integers(4, 8),
    ),
)
# (command, request id, milliseconds until the next entry); None is a no-op.
steps = st.lists(
    st.tuples(
        st.one_of(st.none(), bodies),
        st.integers(1, 8),
        st.sampled_from([0, 1, -50, REQUEST_WINDOW_MS // 2]),
    ),
    min_size=1,
    max_size=20,
)


def log_of(planned: Sequence[tuple[Body | None, int, int]]) -> list[Entry]:
    log = Log()
    for body, request, passed_ms in planned:
        if body is None:
            log.noop()
        else:
            log.command(body, request=request)
        log.now_ms += passed_ms
    return log.entries


def cut(entries: Sequence[Entry], places: Sequence[int]) -> list[Sequence[Entry]]:
    edges = [0, *sorted(place for place in places if place < len(entries)), len(entries)]
    return [entries[start:end] for start, end in itertools.pairwise(edges)]


@settings(max_examples=40, deadline=None)
@given(planned=steps, places=st.lists(st.integers(1, 20), max_size=6))
def test_batches_leave_no_trace(
    planned: list[tuple[Body | None, int, int]], places: list[int]
) -> None:
    entries = log_of(planned)
    with Machine() as machine, tempfile.TemporaryDirectory() as folder:
        one_by_one = [machine.apply_entry(entry) for entry in entries]
        layout = GroupLayout(Path(folder), 1)
        layout.create()
        store = StateStore.open(layout)
        files = RecordingFiles()
        results = []
        try:
            for batch in cut(entries, places):
                results += store.apply_batch(batch, files)
            assert store.export() == machine.export()
            assert store.export_digest() == hashlib.sha256(machine.export()).digest()
        finally:
            store.close()
        assert results == [applied.result for applied in one_by_one]
        assert files.promoted == [each for applied in one_by_one for each in applied.promote]
        # A repository that the same batch takes back stays too.
        assert set(files.retired) <= {each for done in one_by_one for each in done.retire}
        # A pack that the same batch adds again stays where it is.
        removed = [each for applied in one_by_one for each in applied.retire_packs]
        assert set(files.retired_packs) <= set(removed)


SCRIPT = """
import hashlib
from support.state_log import Machine, pack, pruning, replacement, transaction, update
from quorepo.internal.v1 import log_pb2
with Machine() as machine:
    for number in range(30):
        name = f"refs/heads/b{number % 7}"
        machine.apply(transaction(
            update(name, number + 1, any_old=True), update("refs/heads/b1/x", 1),
            update("refs/tags/t%d" % number, 3), repository_id="r%d" % (number % 3),
            packs=[pack(number), pack(number + 1)]))
    machine.apply(log_pb2.DeleteRepository(repository_id="r1"))
    machine.apply(replacement([3, 4, 6], [40], repository_id="r0"))
    machine.apply(replacement([3, 4, 6], [41], repository_id="r0"))
    machine.apply(pruning([40], [42], repository_id="r0", computed_from=11,
                          before_ms=machine.log.now_ms))
    machine.apply(log_pb2.SetHead(repository_id="r0", detached_oid=b"\\1" * 20, prune_epoch=1,
                                  any_old=True))
    machine.apply(log_pb2.UpdateRepository(repository_id="r2", description="d\u00e9"))
    machine.apply(log_pb2.ForkRepository(repository_id="r4", source_id="r0"))
    machine.apply(log_pb2.DeleteRepository(repository_id="r2", path="a/b", retention_ms=5000))
    machine.apply(log_pb2.ForkRepository(repository_id="r5", source_id="r2"))
    machine.apply(log_pb2.UndeleteRepository(repository_id="r2"))
    print(hashlib.sha256(machine.export()).hexdigest())
"""
# Changes when apply, its messages or the dump's form change: then replicas of the old and the new
# program disagree, and COMMAND_VERSION or FORMAT_VERSION has to tell them apart.
SCRIPT_DIGEST = "c10cb81b97bbc0eb8c6023378a7809ca8643dbb2332675fac325210725caa683"


def test_state_is_the_same_in_every_process_and_release() -> None:
    tests = Path(__file__).parents[2]
    for seed in ("0", "1", "42"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(tests)}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == SCRIPT_DIGEST

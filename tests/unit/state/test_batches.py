"""What a batch puts off does not show: any cut of a log into batches gives the same state."""

from __future__ import annotations

import random
import uuid
from collections.abc import Sequence
from pathlib import Path

from quorepo.cluster.raft.interface import Entry
from quorepo.cluster.state.machine import REQUEST_WINDOW_MS
from quorepo.cluster.state.store import StateStore
from quorepo.internal.v1 import log_pb2
from quorepo.storage.layout import GroupLayout

_GROUP = 1
_START_MS = 1_700_000_000_000


class _NoFiles:
    def promote(self, *_: object) -> None: ...
    def store(self, *_: object) -> None: ...
    def retire(self, *_: object) -> None: ...
    def retire_pack(self, *_: object) -> None: ...


def _log(seed: int) -> list[Entry]:
    """Moves, deletes, repeats, HEAD, settings, deletions and forks, over more than the window of
    requests."""
    rng = random.Random(seed)
    entries = [Entry(_GROUP, 1, 0, 0, "noop", b"")]
    sent: list[bytes] = []
    time_ms = _START_MS
    for index in range(2, 400):
        time_ms += rng.choice([0, 1, 1000, REQUEST_WINDOW_MS // 50])
        if index == 200:
            time_ms += 2 * REQUEST_WINDOW_MS
        if sent and rng.random() < 0.1:
            data = rng.choice(sent[-20:])
        else:
            data = _command(rng, time_ms).SerializeToString(deterministic=True)
            sent.append(data)
        entries.append(Entry(_GROUP, index, 1, time_ms, "command", data))
    return entries


def _command(rng: random.Random, time_ms: int) -> log_pb2.Command:
    repository = f"r{rng.randrange(4)}"
    command = log_pb2.Command(
        version=1,
        request_id=uuid.UUID(int=rng.getrandbits(128)).bytes,
        first_seen_ms=time_ms,
        actor="somebody",
    )
    kind = rng.random()
    if kind < 0.05:
        command.delete_repository.repository_id = repository
    elif kind < 0.1:
        command.fork_repository.repository_id = f"fork{rng.randrange(50)}"
        command.fork_repository.source_id = repository
    elif kind < 0.15:
        command.set_head.repository_id = repository
        command.set_head.branch = b"refs/heads/%d" % rng.randrange(5)
        command.set_head.any_old = True
    elif kind < 0.2:
        command.undelete_repository.repository_id = repository
    else:
        transaction = command.transaction
        transaction.repository_id = repository
        transaction.create_if_missing = True
        transaction.object_format = log_pb2.OBJECT_FORMAT_SHA1
        for number in sorted(rng.sample(range(6), rng.randrange(1, 4))):
            transaction.ref_updates.add(
                name=b"refs/heads/%d" % number,
                new_oid=b"" if rng.random() < 0.2 else rng.randbytes(20),
                expected_old_oid=b"" if rng.random() < 0.7 else rng.randbytes(20),
                any_old=rng.random() < 0.7,
            )
    return command


def _applied(
    folder: Path, log: Sequence[Entry], sizes: random.Random | None
) -> tuple[bytes, list[log_pb2.Result | None]]:
    layout = GroupLayout(folder, _GROUP)
    layout.state_dir.mkdir(parents=True)
    store = StateStore.open(layout)
    results = []
    start = 0
    while start < len(log):
        size = 1 if sizes is None else sizes.randrange(1, 60)
        results += store.apply_batch(log[start : start + size], _NoFiles())
        start += size
    export = store.export()
    store.close()
    return export, results


def test_any_cut_of_a_log_into_batches_gives_the_same_state_and_answers(tmp_path: Path) -> None:
    for seed in range(4):
        log = _log(seed)
        one_by_one = _applied(tmp_path / f"{seed}-single", log, None)
        kinds = {result.WhichOneof("kind") for result in one_by_one[1] if result is not None}
        assert kinds >= {"transaction", "repository", "rejection"}
        for cut in range(3):
            sizes = random.Random(f"{seed} {cut}")
            assert _applied(tmp_path / f"{seed}-{cut}", log, sizes) == one_by_one

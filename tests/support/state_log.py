"""Log entries for tests of the replicated state: a log per group, commands, pretended packs."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from typing import Any

from quorepo.cluster.raft.interface import Entry
from quorepo.cluster.state.database import initialize
from quorepo.cluster.state.export import export_lines
from quorepo.cluster.state.machine import Applied, apply_entry
from quorepo.internal.v1 import log_pb2
from quorepo.storage.objectformat import ObjectFormat

START_MS = 1_700_000_000_000
REPOSITORY = "r" * 32


def oid(number: int, size: int = 20) -> bytes:
    """An object id that tells its number."""
    return number.to_bytes(size, "big")


def request_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def pack(number: int) -> log_pb2.PackAddition:
    return log_pb2.PackAddition(
        digest=hashlib.sha256(b"pack %d" % number).digest(),
        index_digest=hashlib.sha256(b"index %d" % number).digest(),
        pack_bytes=1000 + number,
        index_bytes=100 + number,
        object_count=3,
        thin_bytes=500,
        thin_object_count=2,
        encoding=log_pb2.PACK_ENCODING_FILE,
    )


def update(
    name: str | bytes, new: int = 0, old: int = 0, *, any_old: bool = False
) -> log_pb2.RefUpdate:
    """0 stands for no value: a delete, or a ref that must not exist."""
    return log_pb2.RefUpdate(
        name=name.encode() if isinstance(name, str) else name,
        new_oid=oid(new) if new else b"",
        expected_old_oid=oid(old) if old else b"",
        any_old=any_old,
    )


def transaction(
    *updates: log_pb2.RefUpdate,
    repository_id: str = REPOSITORY,
    packs: Sequence[log_pb2.PackAddition] = (),
    atomic: bool = False,
    create: bool = True,
    prune_epoch: int = 0,
    object_format: log_pb2.ObjectFormat.ValueType = log_pb2.OBJECT_FORMAT_SHA1,
    must_create: bool = False,
    head: bytes = b"",
) -> log_pb2.Transaction:
    return log_pb2.Transaction(
        repository_id=repository_id,
        create_if_missing=create,
        object_format=object_format,
        prune_epoch=prune_epoch,
        ref_updates=updates,
        atomic=atomic,
        packs_added=packs,
        must_create=must_create,
        head=head,
    )


def replacement(
    removed: Sequence[int],
    added: Sequence[int],
    *,
    repository_id: str = REPOSITORY,
    prune_epoch: int = 0,
    object_format: log_pb2.ObjectFormat.ValueType = log_pb2.OBJECT_FORMAT_SHA1,
) -> log_pb2.ReplacePacks:
    """Packs by the numbers that `pack` takes."""
    return log_pb2.ReplacePacks(
        repository_id=repository_id,
        prune_epoch=prune_epoch,
        object_format=object_format,
        removed=[pack(number).digest for number in removed],
        added=[pack(number) for number in added],
    )


def pruning(
    removed: Sequence[int],
    added: Sequence[int],
    *,
    computed_from: int,
    before_ms: int,
    repository_id: str = REPOSITORY,
    prune_epoch: int = 0,
    object_format: log_pb2.ObjectFormat.ValueType = log_pb2.OBJECT_FORMAT_SHA1,
) -> log_pb2.Prune:
    """Packs by the numbers that `pack` takes."""
    return log_pb2.Prune(
        repository_id=repository_id,
        prune_epoch=prune_epoch,
        object_format=object_format,
        computed_from=computed_from,
        unreachable_before_ms=before_ms,
        removed=[pack(number).digest for number in removed],
        added=[pack(number) for number in added],
    )


Body = (
    log_pb2.CreateRepository
    | log_pb2.DeleteRepository
    | log_pb2.Transaction
    | log_pb2.ReplacePacks
    | log_pb2.Prune
    | log_pb2.ReservePath
    | log_pb2.ReleasePath
    | log_pb2.RegisterNode
    | log_pb2.AddJoinToken
    | log_pb2.UseJoinToken
    | log_pb2.RevokeJoinToken
    | log_pb2.RaiseLevel
    | log_pb2.SetHead
    | log_pb2.UpdateRepository
    | log_pb2.UndeleteRepository
    | log_pb2.ForkRepository
    | log_pb2.RenamePath
)


def command(body: Body, request: int, *, first_seen_ms: int, version: int = 1) -> log_pb2.Command:
    result = log_pb2.Command(
        version=version,
        request_id=request_id(request),
        first_seen_ms=first_seen_ms,
        actor="alice",
    )
    match body:
        case log_pb2.CreateRepository():
            result.create_repository.CopyFrom(body)
        case log_pb2.DeleteRepository():
            result.delete_repository.CopyFrom(body)
        case log_pb2.Transaction():
            result.transaction.CopyFrom(body)
        case log_pb2.ReplacePacks():
            result.replace_packs.CopyFrom(body)
        case log_pb2.Prune():
            result.prune.CopyFrom(body)
        case log_pb2.ReservePath():
            result.reserve_path.CopyFrom(body)
        case log_pb2.ReleasePath():
            result.release_path.CopyFrom(body)
        case log_pb2.RegisterNode():
            result.register_node.CopyFrom(body)
        case log_pb2.AddJoinToken():
            result.add_join_token.CopyFrom(body)
        case log_pb2.UseJoinToken():
            result.use_join_token.CopyFrom(body)
        case log_pb2.RevokeJoinToken():
            result.revoke_join_token.CopyFrom(body)
        case log_pb2.RaiseLevel():
            result.raise_level.CopyFrom(body)
        case log_pb2.SetHead():
            result.set_head.CopyFrom(body)
        case log_pb2.UpdateRepository():
            result.update_repository.CopyFrom(body)
        case log_pb2.UndeleteRepository():
            result.undelete_repository.CopyFrom(body)
        case log_pb2.ForkRepository():
            result.fork_repository.CopyFrom(body)
        case log_pb2.RenamePath():
            result.rename_path.CopyFrom(body)
    return result


class Log:
    """A growing log: each method appends one entry and returns it."""

    def __init__(self, group: int = 1) -> None:
        self.group = group
        self.entries: list[Entry] = []
        self.now_ms = START_MS
        self._requests = 0

    def noop(self, term: int | None = None) -> Entry:
        return self._append("noop", b"", term)

    def configuration(self, configuration: log_pb2.Configuration) -> Entry:
        return self._append("configuration", configuration.SerializeToString(), None)

    def command(
        self,
        body: Body,
        *,
        request: int | None = None,
        first_seen_ms: int | None = None,
        version: int = 1,
    ) -> Entry:
        """A new request unless `request` repeats one; first seen now unless told otherwise."""
        if request is None:
            self._requests += 1
            request = 1_000_000 + self._requests
        seen = self.now_ms if first_seen_ms is None else first_seen_ms
        encoded = command(body, request, first_seen_ms=seen, version=version)
        return self._append("command", encoded.SerializeToString(), None)

    def raw(self, data: bytes) -> Entry:
        return self._append("command", data, None)

    def _append(self, kind: str, data: bytes, term: int | None) -> Entry:
        last = self.entries[-1].term if self.entries else 1
        entry = Entry(
            group=self.group,
            index=len(self.entries) + 1,
            term=last if term is None else term,
            time_ms=self.now_ms,
            kind=kind,  # type: ignore[arg-type]
            data=data,
        )
        self.entries.append(entry)
        self.now_ms += 1
        return entry


class RecordingFiles:
    """FileActions that only notes what it was asked for, or fails on the nth call."""

    def __init__(self, fail_at: int | None = None, error: BaseException | None = None) -> None:
        self.promoted: list[tuple[str, bytes, ObjectFormat]] = []
        self.stored: list[tuple[str, log_pb2.PackAddition, ObjectFormat]] = []
        self.retired: list[str] = []
        self.retired_packs: list[tuple[str, bytes]] = []
        self._fail_at = fail_at
        self._error = error or OSError(5, "Input/output error")
        self._calls = 0

    def promote(self, repository_id: str, digest: bytes, object_format: ObjectFormat) -> None:
        self._count()
        self.promoted.append((repository_id, digest, object_format))

    def store(
        self, repository_id: str, pack: log_pb2.PackAddition, object_format: ObjectFormat
    ) -> None:
        self._count()
        self.stored.append((repository_id, pack, object_format))

    def retire(self, repository_id: str) -> None:
        self._count()
        self.retired.append(repository_id)

    def retire_pack(self, repository_id: str, digest: bytes) -> None:
        self._count()
        self.retired_packs.append((repository_id, digest))

    def _count(self) -> None:
        self._calls += 1
        if self._calls == self._fail_at:
            raise self._error


class Machine:
    """One group's log applied to a database in memory as it is written."""

    def __init__(self, group: int = 1) -> None:
        self.log = Log(group)
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        initialize(self.connection, group)

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def apply(self, body: Body, **arguments: Any) -> Applied:
        """Appends the command and applies it in a transaction of its own."""
        return self.apply_entry(self.log.command(body, **arguments))

    def apply_entry(self, entry: Entry) -> Applied:
        self.connection.execute("BEGIN")
        applied = apply_entry(self.connection, entry)
        self.connection.execute("COMMIT")
        return applied

    def push(self, *updates: log_pb2.RefUpdate, **arguments: Any) -> log_pb2.TransactionResult:
        """Applies a transaction that is not refused as a whole."""
        result = result_of(self.apply(transaction(*updates, **arguments)))
        assert result.WhichOneof("kind") == "transaction", result
        return result.transaction

    def rejection(self, body: Body, **arguments: Any) -> log_pb2.RejectionReason.ValueType:
        """The reason for which the command is refused; 0 when it is not."""
        return result_of(self.apply(body, **arguments)).rejection.reason

    def refs(self, repository_id: str = REPOSITORY) -> dict[str, int]:
        """Names without `refs/heads/`, and the numbers of the object ids."""
        rows = self.connection.execute(
            "SELECT name, oid FROM refs WHERE repository_id = ? ORDER BY name", (repository_id,)
        )
        return {
            name.decode().removeprefix("refs/heads/"): int.from_bytes(value, "big")
            for name, value in rows
        }

    def repository(self, repository_id: str = REPOSITORY) -> dict[str, Any]:
        """The repository's row by column name; empty when there is none."""
        cursor = self.connection.execute(
            "SELECT * FROM repositories WHERE repository_id = ?", (repository_id,)
        )
        row = cursor.fetchone()
        return dict(zip([column[0] for column in cursor.description], row or (), strict=bool(row)))

    def export(self) -> bytes:
        return b"".join(export_lines(self.connection))


def result_of(applied: Applied) -> log_pb2.Result:
    assert applied.result is not None
    return applied.result


def statuses(result: log_pb2.TransactionResult) -> list[str]:
    """The refs' verdicts as short words."""
    return [
        log_pb2.RefStatus.Name(ref.status).removeprefix("REF_STATUS_").lower().replace("_", "-")
        for ref in result.refs
    ]

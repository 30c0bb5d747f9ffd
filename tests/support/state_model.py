"""A model of the machine in plain dicts, with the rules to compare them under Hypothesis: pushes,
repeats, deletes, time, packs replaced and pruned."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from quorepo.cluster.state.machine import REQUEST_WINDOW_MS
from quorepo.internal.v1 import log_pb2
from support.state_log import Machine, oid, pack, pruning, replacement, result_of, transaction

IDS = ("one", "two")
NAMES = tuple(
    f"refs/{name}".encode()
    for name in ("heads/a", "heads/a/b", "heads/a/b/c", "heads/a0", "heads/b", "heads/main",
                 "tags/a", "heads/bad..name")
)  # fmt: skip
INVALID = (b"refs/heads/bad..name",)


@dataclasses.dataclass
class Model:
    """A repository as the documentation describes it."""

    refs: dict[bytes, bytes] = dataclasses.field(default_factory=dict)
    packs: dict[bytes, int] = dataclasses.field(default_factory=dict)  # to when they arrived
    removed: list[tuple[bytes, int]] = dataclasses.field(default_factory=list)
    prune_epoch: int = 0
    counter: int = 0
    head: bytes | None = None  # None: still open
    deleted: bool = False


Verdicts = list[tuple[str, bytes]]


def judge(
    refs: dict[bytes, bytes], updates: list[log_pb2.RefUpdate], atomic: bool
) -> tuple[Verdicts, dict[bytes, bytes | None]]:
    """Verdicts with their detail, and the changes; by brute force."""
    verdicts: list[tuple[str, bytes]] = []
    for each in updates:
        actual = refs.get(each.name, b"")
        if each.name in INVALID:
            verdicts.append(("INVALID_NAME", b""))
        elif not each.any_old and actual != each.expected_old_oid:
            verdicts.append(("STALE", actual))
        else:
            verdicts.append(("OK", b""))
    gone = [
        u.name for u, v in zip(updates, verdicts, strict=True) if v[0] == "OK" and not u.new_oid
    ]
    taken = [name for name in refs if name not in gone]
    for position, each in enumerate(updates):
        if verdicts[position][0] != "OK" or not each.new_oid or each.name in refs:
            continue
        parents = [other for other in taken if each.name.startswith(other + b"/")]
        children = [other for other in taken if other.startswith(each.name + b"/")]
        if parents or children:
            verdicts[position] = ("NAME_CONFLICT", b"*")
        else:
            taken.append(each.name)
    if atomic and any(verdict != "OK" for verdict, _ in verdicts):
        return [("ATOMIC_ABORTED", b"") if v[0] == "OK" else v for v in verdicts], {}
    changes = {
        u.name: u.new_oid or None
        for u, (verdict, _) in zip(updates, verdicts, strict=True)
        if verdict == "OK"
    }
    return verdicts, changes


def head_after(model: Model, created: list[bytes]) -> bytes | None:
    branches = [name for name in created if name.startswith(b"refs/heads/")]
    if model.head is not None or not branches:
        return model.head
    return b"refs/heads/main" if b"refs/heads/main" in branches else branches[0]


def verdicts_of(result: log_pb2.TransactionResult) -> Verdicts:
    verdicts = []
    for ref in result.refs:
        name = log_pb2.RefStatus.Name(ref.status).removeprefix("REF_STATUS_")
        assert (name == "NAME_CONFLICT") == bool(ref.conflicting_name)
        verdicts.append((name, b"*" if ref.conflicting_name else ref.actual_old_oid))
    return verdicts


updates_strategy = st.lists(
    st.tuples(
        st.sampled_from(NAMES),
        st.integers(0, 3),  # new value, 0 deletes
        st.one_of(st.just("right"), st.just("any"), st.integers(0, 3)),  # expected old value
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda each: each[0],
)


class AgainstModel(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.machine = Machine()
        self.models: dict[str, Model] = {}
        self.answers: dict[int, tuple[Any, int, log_pb2.Result]] = {}
        self.requests = 0

    def teardown(self) -> None:
        if hasattr(self, "machine"):
            self.machine.connection.close()

    def _apply(self, body: Any) -> log_pb2.Result:
        self.requests += 1
        # The nodes' clocks differ: behind, right, ahead.
        skew_ms = (self.requests % 3 - 1) * REQUEST_WINDOW_MS // 2
        seen_ms = self.machine.log.now_ms + skew_ms
        applied = self.machine.apply(body, request=self.requests, first_seen_ms=seen_ms)
        result = result_of(applied)
        self.answers[self.requests] = (body, seen_ms, result)
        return result

    @rule(
        repository_id=st.sampled_from(IDS),
        planned=updates_strategy,
        atomic=st.booleans(),
        create=st.booleans(),
        packs=st.lists(st.integers(1, 4), max_size=2, unique=True),
        old_epoch=st.booleans(),
    )
    def push(
        self,
        repository_id: str,
        planned: list[tuple[bytes, int, str | int]],
        atomic: bool,
        create: bool,
        packs: list[int],
        old_epoch: bool,
    ) -> None:
        existing = self.models.get(repository_id)
        model = existing or Model()
        updates = []
        for name, new, old in planned:
            expected = model.refs.get(name, b"") if old == "right" else b""
            if isinstance(old, int) and old:
                expected = oid(old)
            update = log_pb2.RefUpdate(
                name=name, new_oid=oid(new) if new else b"", any_old=old == "any"
            )
            update.expected_old_oid = expected
            updates.append(update)
        result = self._apply(
            transaction(
                *updates,
                repository_id=repository_id,
                atomic=atomic,
                create=create,
                packs=[pack(number) for number in packs],
                prune_epoch=0 if old_epoch else model.prune_epoch,
            )
        )
        if existing is None and not create:
            reason = log_pb2.REJECTION_REASON_REPOSITORY_NOT_FOUND
            assert result.rejection.reason == reason
            return
        if model.deleted:
            assert result.rejection.reason == log_pb2.REJECTION_REASON_REPOSITORY_DELETED
            return
        if old_epoch and model.prune_epoch and any(update.new_oid for update in updates):
            assert result.rejection.reason == log_pb2.REJECTION_REASON_REVERIFY
            return
        verdicts, changes = judge(model.refs, updates, atomic)
        assert verdicts_of(result.transaction) == verdicts
        done = any(changes.values()) if existing is None else bool(changes)
        assert result.transaction.created == (existing is None and done)
        if done:
            self._change(repository_id, model, changes, packs)
        assert result.transaction.revision.counter == model.counter

    def _change(
        self, repository_id: str, model: Model, changes: dict[bytes, bytes | None], packs: list[int]
    ) -> None:
        self.models[repository_id] = model
        model.head = head_after(
            model, [name for name, new in changes.items() if new and name not in model.refs]
        )
        for name, new in changes.items():
            model.refs.pop(name, None)
            if new:
                model.refs[name] = new
        for number in packs:
            model.packs.setdefault(pack(number).digest, self._log_time_ms())
        model.counter += 1

    @rule(
        repository_id=st.sampled_from(IDS),
        removed=st.lists(st.integers(1, 6), max_size=3, unique=True),
        added=st.lists(st.integers(3, 8), max_size=2, unique=True),
        old_epoch=st.booleans(),
    )
    def replace(
        self, repository_id: str, removed: list[int], added: list[int], old_epoch: bool
    ) -> None:
        model = self.models.get(repository_id)
        epoch = 0 if old_epoch or model is None else model.prune_epoch
        body = replacement(removed, added, repository_id=repository_id, prune_epoch=epoch)
        self._replace(repository_id, self._apply(body), removed, added, epoch, needs_added=True)

    @rule(
        repository_id=st.sampled_from(IDS),
        removed=st.lists(st.integers(1, 6), max_size=3, unique=True),
        added=st.lists(st.integers(3, 8), max_size=1),
        behind=st.sampled_from([0, 0, 1]),
        grace_ms=st.sampled_from([-1, 0, 3]),
    )
    def prune(
        self, repository_id: str, removed: list[int], added: list[int], behind: int, grace_ms: int
    ) -> None:
        model = self.models.get(repository_id)
        epoch = 0 if model is None else model.prune_epoch
        counter = max(0, (0 if model is None else model.counter) - behind)
        now_ms = max(self.machine.log.now_ms, self._log_time_ms())
        before_ms = now_ms - grace_ms
        body = pruning(
            removed, added, computed_from=counter, before_ms=before_ms,
            repository_id=repository_id, prune_epoch=epoch,
        )  # fmt: skip
        result = self._apply(body)
        if model is not None and not model.deleted and result.rejection.reason == 0:
            assert counter == model.counter
            assert before_ms <= self._log_time_ms()
            assert all(model.packs[pack(number).digest] < before_ms for number in removed)
            model.prune_epoch += 1
        elif model is not None and result.rejection.reason == log_pb2.REJECTION_REASON_INVALID:
            young = [
                number for number in removed
                if model.packs.get(pack(number).digest, 0) >= before_ms
            ]  # fmt: skip
            if young or before_ms > self._log_time_ms():
                return
        elif model is not None and counter != model.counter:
            return
        self._replace(repository_id, result, removed, added, epoch, needs_added=False)

    def _replace(
        self,
        repository_id: str,
        result: log_pb2.Result,
        removed: list[int],
        added: list[int],
        epoch: int,
        *,
        needs_added: bool,
    ) -> None:
        model = self.models.get(repository_id)
        reason = result.rejection.reason
        gone = [pack(number).digest for number in removed]
        if model is None:
            assert reason == log_pb2.REJECTION_REASON_REPOSITORY_NOT_FOUND
        elif model.deleted:
            assert reason == log_pb2.REJECTION_REASON_REPOSITORY_DELETED
        elif not set(removed) - set(added) or (needs_added and not added):
            assert reason == log_pb2.REJECTION_REASON_INVALID
        elif (needs_added and epoch != model.prune_epoch) or any(
            digest not in model.packs for digest in gone
        ):
            assert reason == log_pb2.REJECTION_REASON_PACKS_CHANGED
        else:
            arrived_ms = max(model.packs[digest] for digest in gone)
            model.counter += 1
            for number in removed:
                if number not in added:
                    del model.packs[pack(number).digest]
                    model.removed.append((pack(number).digest, model.counter))
            for number in added:
                model.packs.setdefault(pack(number).digest, arrived_ms)
            assert result.repository.revision.counter == model.counter

    @rule(repository_id=st.sampled_from(IDS), branch=st.sampled_from([b"", b"refs/heads/b"]))
    def create(self, repository_id: str, branch: bytes) -> None:
        body = log_pb2.CreateRepository(
            repository_id=repository_id,
            object_format=log_pb2.OBJECT_FORMAT_SHA1,
            default_branch=branch,
        )
        result = self._apply(body)
        model = self.models.get(repository_id)
        if model is None:
            assert result.repository.repository_id == repository_id
            self.models[repository_id] = Model(head=branch or None)
        elif model.deleted:
            assert result.rejection.reason == log_pb2.REJECTION_REASON_REPOSITORY_DELETED
        else:
            assert result.rejection.reason == log_pb2.REJECTION_REASON_REPOSITORY_EXISTS

    @rule(repository_id=st.sampled_from(IDS[:1]))
    def delete(self, repository_id: str) -> None:
        result = self._apply(log_pb2.DeleteRepository(repository_id=repository_id))
        model = self.models.get(repository_id)
        if model is None:
            assert result.rejection.reason == log_pb2.REJECTION_REASON_REPOSITORY_NOT_FOUND
        elif model.deleted:
            assert result.rejection.reason == log_pb2.REJECTION_REASON_REPOSITORY_DELETED
        else:
            model.deleted = True
            model.counter += 1
            assert result.repository.revision.counter == model.counter

    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """Any request ever made, once more: the same answer, or *unknown* when it is too old."""
        if not self.answers:
            return
        request = data.draw(st.sampled_from(list(self.answers)))
        body, seen_ms, answer = self.answers[request]
        expired = seen_ms < self.machine.log.now_ms - REQUEST_WINDOW_MS
        applied = self.machine.apply(body, request=request, first_seen_ms=seen_ms)
        result = result_of(applied)
        assert (applied.promote, applied.retire, applied.retire_packs) == ((), (), ())
        if answer.rejection.reason == log_pb2.REJECTION_REASON_REVERIFY:
            assert result.rejection.reason in (
                log_pb2.REJECTION_REASON_REVERIFY,
                log_pb2.REJECTION_REASON_REQUEST_EXPIRED,
                log_pb2.REJECTION_REASON_REPOSITORY_DELETED,
            )
        elif result != answer:
            assert expired
            assert result.rejection.reason == log_pb2.REJECTION_REASON_REQUEST_EXPIRED

    @rule(passed_ms=st.sampled_from([1, REQUEST_WINDOW_MS // 2, REQUEST_WINDOW_MS, -5000]))
    def time_passes(self, passed_ms: int) -> None:
        self.machine.log.now_ms += passed_ms
        self.machine.apply_entry(self.machine.log.noop())
        # Log time does not go back; the model reads it off the log's clock.
        self.machine.log.now_ms = max(self.machine.log.now_ms, self._log_time_ms())

    def _log_time_ms(self) -> int:
        row = self.machine.connection.execute("SELECT log_time_ms FROM position").fetchone()
        return int(row[0])

    @invariant()
    def state_is_the_models(self) -> None:
        for repository_id, model in getattr(self, "models", {}).items():
            row = self.machine.repository(repository_id)
            assert row["counter"] == model.counter
            assert row["head"] == (model.head or b"refs/heads/main")
            assert (row["deleted_ms"] is not None) == model.deleted
            refs = self.machine.connection.execute(
                "SELECT name, oid FROM refs WHERE repository_id = ?", (repository_id,)
            )
            assert dict(refs.fetchall()) == model.refs
            packs = self.machine.connection.execute(
                "SELECT digest, arrived_ms FROM packs WHERE repository_id = ?", (repository_id,)
            )
            assert dict(packs.fetchall()) == model.packs
            assert row["prune_epoch"] == model.prune_epoch
            removed = self.machine.connection.execute(
                "SELECT digest, removed_counter FROM removed_packs WHERE repository_id = ?",
                (repository_id,),
            )
            assert sorted(removed.fetchall()) == sorted(model.removed)

    @invariant()
    def unknown_repositories_leave_nothing(self) -> None:
        if hasattr(self, "machine"):
            rows = self.machine.connection.execute("SELECT repository_id FROM repositories")
            assert {identity for (identity,) in rows} == set(self.models)

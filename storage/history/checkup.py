"""What `git fsck` would say of a stored repository, in our words.

Owns the check of everything stored: packs by their digests, objects by their ids and by git's fsck
rules, references between objects, and refs. It reads all of it: run it in a worker process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from quorepo.storage.errors import CorruptPack, DamagedPack
from quorepo.storage.fsck import Fsck
from quorepo.storage.fsck_policy import FsckPolicy
from quorepo.storage.history.source import History
from quorepo.storage.packs import COMMIT, TAG, TREE, TYPE_NAMES, PackFile

__all__ = ["check_everything"]

_READ_BYTES = 4 * 1024 * 1024


class _EnoughError(Exception):
    """More problems than are told."""


def check_everything(
    history: History, refs: Mapping[bytes, bytes], problems_max: int, policy: FsckPolicy
) -> dict[str, Any]:
    """{problems: [{message_id, oid, ref_name, text}], objects, packs, truncated}."""
    check = _Checkup(history, policy, problems_max)
    truncated = False
    try:
        check.run(refs)
    except _EnoughError:
        truncated = True
    return {
        "problems": check.problems,
        "objects": check.objects,
        "packs": len(history.objects.packs),
        "truncated": truncated,
    }


class _Checkup:
    def __init__(self, history: History, policy: FsckPolicy, problems_max: int) -> None:
        self.problems: list[dict[str, str]] = []
        self.objects = 0
        self._history = history
        self._problems_max = problems_max
        self._referred: dict[bytes, tuple[int, bytes]] = {}
        self._current = b""
        self._fsck = Fsck(policy, history.objects.object_format, self._refer)

    def run(self, refs: Mapping[bytes, bytes]) -> None:
        for pack in self._history.objects.packs:
            self._check_pack(pack)
        for oid, (kind, referrer) in self._referred.items():
            self._check_reference(oid, kind, referrer)
        for name, oid in refs.items():
            if oid not in self._history.objects:
                self._tell("badRef", f"it points to {oid.hex()}, which does not exist", b"", name)

    def _check_pack(self, pack: PackFile) -> None:
        try:
            digest = hashlib.sha256()
            for start in range(0, pack.pack_bytes, _READ_BYTES):
                digest.update(pack.slice(start, min(start + _READ_BYTES, pack.pack_bytes)))
            if digest.digest() != pack.digest:
                self._tell("damagedPack", f"pack {pack.path.name!r} is not what its name says")
            for offset in pack.iter_offsets():
                self._check_object(pack, offset)
        except DamagedPack as error:
            self._tell("damagedPack", error.message)

    def _check_object(self, pack: PackFile, offset: int) -> None:
        self.objects += 1
        objects = self._history.objects
        oid = pack.oid_at(offset)
        try:
            kind, content = objects.get_at(pack, offset)
        except DamagedPack as error:
            self._tell("damagedPack", error.message, oid)
            return
        if objects.object_format.object_id(TYPE_NAMES[kind], content) != oid:
            self._tell("hashMismatch", "its content has another id", oid)
            return
        self._current = oid
        checks = {COMMIT: self._fsck.commit, TREE: self._fsck.tree, TAG: self._fsck.tag}
        try:
            if kind in checks:
                checks[kind](oid, content)
        except CorruptPack as error:
            message_id = error.metadata.get("message_id", "badObject")
            self._tell(message_id, error.message, oid)

    def _refer(self, oid: bytes, kind: int) -> None:
        self._referred.setdefault(oid, (kind, self._current))

    def _check_reference(self, oid: bytes, kind: int, referrer: bytes) -> None:
        located = self._history.objects.locate(oid)
        if located is None:
            text = f"object {referrer.hex()} refers to it, and it does not exist"
            self._tell("missingObject", text, oid)
            return
        found = self._history.objects.type_at(*located)
        if found != kind:
            have, want = (TYPE_NAMES[number].decode() for number in (found, kind))
            text = f"object {referrer.hex()} refers to it as a {want}, it is a {have}"
            self._tell("wrongType", text, oid)

    def _tell(self, message_id: str, text: str, oid: bytes = b"", ref_name: bytes = b"") -> None:
        if len(self.problems) >= self._problems_max:
            raise _EnoughError
        self.problems.append(
            {"message_id": message_id, "oid": oid.hex(), "ref_name": ref_name.hex(), "text": text}
        )

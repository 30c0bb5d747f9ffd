"""The worker job `operate`: makes objects, and gives them to ingest as a pushed pack.

    operate  {repository, upload, folder, ref, kind, arguments, fsck}
             -> {answer: {...}, oid: hex, result: IngestResult | null}

`kind` "files": {base, actions, content, author, committer, message, allow_empty}; "tag": {target,
name, tagger, message}; the others are merging.py's. Bytes are hex. `content` is the file that the
actions' offsets speak of. `folder` does not exist before and after; a merge has it meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quorepo.storage.errors import InvalidArgument, Rejected
from quorepo.storage.ingest import FsckPolicy, ingest_pack
from quorepo.storage.layout import GroupLayout
from quorepo.storage.limits import StorageLimits
from quorepo.storage.operations import merging
from quorepo.storage.operations.files import Action, edit
from quorepo.storage.operations.objects import NewObjects
from quorepo.storage.packs import PackSet

__all__ = ["run"]


def run(
    arguments: Mapping[str, Any], limits: StorageLimits, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Does the job. Raises what ingest raises, and refusals of the edit."""
    repository = arguments["repository"]
    packs = PackSet.from_description(repository)
    objects = NewObjects(packs)
    kinds = {"files": _files, "tag": _tag}
    kind, spec = arguments["kind"], arguments["arguments"]
    if kind in merging.KINDS:
        oid, answer = merging.KINDS[kind](objects, spec, repository, Path(arguments["folder"]))
    elif kind in kinds:
        oid, answer = kinds[kind](objects, spec)
    else:
        raise InvalidArgument(f"unknown operation {kind!r}")
    upload = Path(arguments["upload"])
    result = None
    if objects.write_pack(upload):
        result = ingest_pack(
            upload,
            GroupLayout(Path(repository["data_dir"]), int(repository["group"])),
            packs,
            [(bytes.fromhex(arguments["ref"]), oid)],
            packs.object_format,
            limits,
            FsckPolicy(arguments.get("fsck")),
            progress,
            limits.inline_pack_bytes_max,
        )
    upload.unlink(missing_ok=True)
    return {
        "answer": answer,
        "oid": oid.hex(),
        "result": None if result is None else result.to_json(),
    }


def _files(objects: NewObjects, spec: Mapping[str, Any]) -> tuple[bytes, dict[str, Any]]:
    base = bytes.fromhex(spec["base"])
    old_tree = objects.tree_of(base) if base else None
    content = Path(spec["content"]).read_bytes() if spec["content"] else b""
    tree = edit(objects, old_tree, [_action(action, content) for action in spec["actions"]])
    if tree == old_tree and not spec["allow_empty"]:
        raise Rejected("the commit would change nothing", next_step="set allow_empty to want that")
    commit = objects.add_commit(
        tree,
        [base] if base else [],
        bytes.fromhex(spec["author"]),
        bytes.fromhex(spec["committer"]),
        bytes.fromhex(spec["message"]),
    )
    return commit, {"commit": commit.hex(), "tree": tree.hex()}


def _action(spec: Mapping[str, Any], content: bytes) -> Action:
    start, end = spec["content"] or (0, 0)
    return Action(
        kind=spec["kind"],
        path=bytes.fromhex(spec["path"]),
        previous_path=bytes.fromhex(spec["previous_path"]),
        mode=spec["mode"],
        content=None if spec["content"] is None else content[start:end],
        expected=bytes.fromhex(spec["expected"]),
    )


def _tag(objects: NewObjects, spec: Mapping[str, Any]) -> tuple[bytes, dict[str, Any]]:
    target = bytes.fromhex(spec["target"])
    tag = objects.add_tag(
        target,
        bytes.fromhex(spec["name"]),
        bytes.fromhex(spec["tagger"]),
        bytes.fromhex(spec["message"]),
    )
    return tag, {"oid": tag.hex(), "target": target.hex()}

"""The questions by name, with arguments and answers in JSON: in this process or in a worker's.

    answer     a small answer: {…} -> {…}
    stream     a large one in parts: JSON (a change, a hunk) and bytes (a patch, an archive)

Owns the registry and the JSON. Ids, paths and names are hex. Must not know who asks: limits come
with the arguments, under the name of their key in [api], and what was cut names that key.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from quorepo.storage.fsck_policy import FsckPolicy
from quorepo.storage.history import merge_base, walk
from quorepo.storage.history.changes import Change, PathFilter, Side, changed_paths
from quorepo.storage.history.checkup import check_everything
from quorepo.storage.history.patches import file_patch
from quorepo.storage.history.renames import RenameOptions, find_renames
from quorepo.storage.history.search import compile_pattern, search
from quorepo.storage.history.source import History
from quorepo.storage.history.trees import lfs_pointer, list_tree

__all__ = ["ANSWERS", "WORKER_ONLY", "answer", "change_to_json", "diff_changes", "raw"]

Arguments = Mapping[str, Any]


def answer(history: History, question: str, arguments: Arguments) -> dict[str, Any]:
    """The answer to one question. Raises what the question raises, and TooMuchWork."""
    return ANSWERS[question](history, arguments)


def raw(values: list[str]) -> list[bytes]:
    """Hex as bytes."""
    return [bytes.fromhex(value) for value in values]


def _log(history: History, arguments: Arguments) -> dict[str, Any]:
    """{query, offset, limit} -> {oids, more}."""
    query = walk.LogQuery.from_json(arguments["query"])
    offset, limit = arguments["offset"], arguments["limit"]
    found = itertools.islice(walk.commits_of(history, query), offset, offset + limit + 1)
    oids = [oid.hex() for oid in found]
    return {"oids": oids[:limit], "more": len(oids) > limit}


def _count(history: History, arguments: Arguments) -> dict[str, Any]:
    """{query, at_most} -> {count}."""
    query = walk.LogQuery.from_json(arguments["query"])
    return {"count": walk.count_commits(history, query, arguments["at_most"])}


def _diverging(history: History, arguments: Arguments) -> dict[str, Any]:
    """{left, right, at_most} -> {left, right}."""
    left, right = raw([arguments["left"], arguments["right"]])
    lefts, rights = walk.count_diverging(history, left, right, arguments["at_most"])
    return {"left": lefts, "right": rights}


def _is_ancestor(history: History, arguments: Arguments) -> dict[str, Any]:
    """{ancestor, descendant} -> {is_ancestor}."""
    ancestor, descendant = raw([arguments["ancestor"], arguments["descendant"]])
    return {"is_ancestor": merge_base.is_ancestor(history, ancestor, descendant)}


def _merge_bases(history: History, arguments: Arguments) -> dict[str, Any]:
    """{commits} -> {oids}."""
    one, *rest = raw(arguments["commits"])
    return {"oids": [oid.hex() for oid in merge_base.merge_bases(history, one, rest)]}


def _containing(history: History, arguments: Arguments) -> dict[str, Any]:
    """{target, tips} -> {tips}."""
    tips = raw(arguments["tips"])
    found = merge_base.containing(history, bytes.fromhex(arguments["target"]), tips)
    return {"tips": [oid.hex() for oid in found]}


def _last_commits(history: History, arguments: Arguments) -> dict[str, Any]:
    """{tip, paths} -> {oids}, null where no commit had the path."""
    tip = bytes.fromhex(arguments["tip"])
    oids = [walk.last_commit_for_path(history, tip, path) for path in raw(arguments["paths"])]
    return {"oids": [None if oid is None else oid.hex() for oid in oids]}


def _tree(history: History, arguments: Arguments) -> dict[str, Any]:
    """{tree, folder, recursive, with_folders, after, limit, blobs_only} -> {entries, more}."""
    limit = arguments["limit"]
    found: list[list[Any]] = []
    for entry in _listed(history, arguments):
        if arguments.get("blobs_only") and not entry.is_blob:
            continue
        if len(found) == limit:
            return {"entries": found, "more": True}
        found.append([entry.path.hex(), entry.mode, entry.oid.hex()])
    return {"entries": found, "more": False}


def _blobs(history: History, arguments: Arguments) -> dict[str, Any]:
    """The same with sizes and LFS pointers; `lfs_only`: those alone."""
    found: list[list[Any]] = []
    for entry in _listed(history, {**arguments, "recursive": True}):
        if not entry.is_blob:
            continue
        history.spend()
        size = history.objects.object_size(entry.oid)
        pointer = lfs_pointer(history, entry.oid, size) if entry.mode != 0o120000 else None
        if pointer is None and arguments["lfs_only"]:
            continue
        if len(found) == arguments["limit"]:
            return {"entries": found, "more": True}
        found.append([entry.path.hex(), entry.mode, entry.oid.hex(), size, pointer])
    return {"entries": found, "more": False}


def _listed(history: History, arguments: Arguments) -> Any:
    return list_tree(
        history,
        bytes.fromhex(arguments["tree"]),
        bytes.fromhex(arguments["folder"]),
        recursive=arguments["recursive"],
        with_folders=arguments.get("with_folders", False),
        after=bytes.fromhex(arguments["after"]),
    )


def _changes(history: History, arguments: Arguments) -> dict[str, Any]:
    """{old, new, paths, renames, …, offset, limit} -> {changes, more, truncated_by}."""
    changes, truncated_by = diff_changes(history, arguments)
    offset, limit = arguments["offset"], arguments["limit"]
    return {
        "changes": [change_to_json(change) for change in changes[offset : offset + limit]],
        "more": len(changes) > offset + limit,
        "truncated_by": truncated_by,
    }


def _stats(history: History, arguments: Arguments) -> dict[str, Any]:
    """{old, new, paths, renames, …} -> {files, additions, deletions, truncated_by}."""
    changes, truncated_by = diff_changes(history, arguments)
    additions = deletions = 0
    for change in changes:
        patch = file_patch(history, change, 0, arguments["diff_file_bytes_max"], with_text=False)
        additions += patch.additions
        deletions += patch.deletions
        if patch.is_left_out:
            truncated_by = truncated_by or "api.diff_file_bytes_max"
    return {
        "files": len(changes),
        "additions": additions,
        "deletions": deletions,
        "truncated_by": truncated_by,
    }


def diff_changes(history: History, arguments: Arguments) -> tuple[list[Change], str]:
    """The changes that are asked for, and the key of the limit that left something out."""
    old = bytes.fromhex(arguments["old"]) if arguments["old"] else None
    new = bytes.fromhex(arguments["new"]) if arguments["new"] else None
    changes = changed_paths(history, old, new, PathFilter(raw(arguments["paths"])))
    truncated_by = ""
    if arguments["renames"]:
        options = RenameOptions(
            arguments["similarity"],
            copies=arguments["copies"],
            blob_bytes_max=arguments["diff_file_bytes_max"],
        )
        changes, _ = find_renames(history, changes, options)
    if len(changes) > arguments["diff_files_max"]:
        changes = changes[: arguments["diff_files_max"]]
        truncated_by = "api.diff_files_max"
    return changes, truncated_by


def change_to_json(change: Change) -> dict[str, Any]:
    """One changed path."""

    def side(value: Side | None) -> list[Any] | None:
        return None if value is None else [value.path.hex(), value.mode, value.oid.hex()]

    return {
        "status": change.status,
        "old": side(change.old),
        "new": side(change.new),
        "similarity": change.similarity,
    }


def _search(history: History, arguments: Arguments) -> dict[str, Any]:
    """{tree, pattern, …, matches_max, search_bytes_max} -> {matches, truncated_by}."""
    pattern = compile_pattern(
        bytes.fromhex(arguments["pattern"]),
        regular_expression=arguments["regular_expression"],
        ignore_case=arguments["ignore_case"],
    )
    matches, cut = search(
        history,
        bytes.fromhex(arguments["tree"]),
        pattern,
        raw(arguments["paths"]),
        arguments["matches_max"],
        arguments["search_bytes_max"],
    )
    names = {"": "", "bytes": "api.search_bytes_max", "matches": "matches_max"}
    return {"matches": matches, "truncated_by": names[cut]}


def _fsck(history: History, arguments: Arguments) -> dict[str, Any]:
    """{refs: [[name, id]], problems_max, overrides} -> {problems, objects, packs, truncated}."""
    refs = {bytes.fromhex(name): bytes.fromhex(oid) for name, oid in arguments["refs"]}
    policy = FsckPolicy(arguments["overrides"])
    return check_everything(history, refs, arguments["problems_max"], policy)


ANSWERS: dict[str, Callable[[History, Arguments], dict[str, Any]]] = {
    "log": _log,
    "count": _count,
    "diverging": _diverging,
    "is_ancestor": _is_ancestor,
    "merge_bases": _merge_bases,
    "containing": _containing,
    "last_commits": _last_commits,
    "tree": _tree,
    "blobs": _blobs,
    "changes": _changes,
    "stats": _stats,
    "search": _search,
    "fsck": _fsck,
}

# A pattern may take for ever, and a check reads everything: never in the process that serves.
WORKER_ONLY = frozenset({"search", "fsck"})

"""Questions about commits and trees of one repository at one revision.

Owns how a path leads to a tree entry, and the parsing of commits, with dulwich's parsers. Must not
know gRPC. Everything here reads packs and blocks: call it off the event loop. How a commit is named
is storage/history/revisions.py's matter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from dulwich.errors import ObjectFormatException
from dulwich.objects import Commit, parse_tree

from quorepo.rpc.reads import RepositoryView
from quorepo.storage.errors import InvalidArgument, NotFound, Rejected
from quorepo.storage.packs import BLOB, COMMIT, TREE, TYPE_NAMES

__all__ = [
    "GITLINK_MODE",
    "TREE_MODE",
    "Entry",
    "MalformedObject",
    "blob_size",
    "commit_content",
    "commit_of",
    "entry_at",
    "normal_path",
    "parse_oid",
    "read_blob",
    "tree_entries",
]

TREE_MODE = 0o040000
GITLINK_MODE = 0o160000
_PATH_BYTES_MAX = 65_536


class MalformedObject(Rejected):
    """A stored object can't be parsed; relaxed object checks let it in."""

    reason = "MALFORMED_OBJECT"


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """What a tree says at one path; `name` is empty for the root."""

    name: bytes
    path: bytes
    mode: int
    oid: bytes  # raw

    @property
    def type(self) -> int:
        """COMMIT (a submodule), TREE or BLOB."""
        if self.mode == GITLINK_MODE:
            return COMMIT
        return TREE if self.mode == TREE_MODE else BLOB


def parse_oid(view: RepositoryView, text: str, what: str = "object id") -> bytes:
    """A full hex object id of the repository's object format as raw bytes.

    Raises:
        InvalidArgument: wrong length or not hex.
    """
    expected = view.object_format.hex_bytes
    try:
        raw = bytes.fromhex(text) if text.isascii() and len(text) == expected else b""
    except ValueError:
        raw = b""
    if len(raw) != view.object_format.hash_bytes:
        raise InvalidArgument(f"{what} must have {expected} hex digits, got {text[:80]!r}")
    return raw


def commit_of(view: RepositoryView, oid: bytes) -> Commit:
    """A commit by its raw id. Raises NotFound, MalformedObject."""
    return _parse_commit(view, oid)


def normal_path(path: bytes) -> bytes:
    """A path below the root without a slash at its end; empty for the root.

    Raises:
        InvalidArgument: absolute, too long, or with an empty, `.` or `..` component.
    """
    return b"/".join(_components(path))


def tree_entries(view: RepositoryView, tree: bytes, path: bytes = b"") -> Iterator[Entry]:
    """The entries of one tree in git's order; `path` is where the tree lies.

    Raises:
        NotFound: no such object.
        InvalidArgument: no tree.
        MalformedObject
    """
    prefix = path + b"/" if path else b""
    for name, mode, hex_oid in _parsed_tree(view, tree):
        yield Entry(name, prefix + name, mode, bytes.fromhex(hex_oid.decode("ascii")))


def entry_at(view: RepositoryView, root: bytes, path: bytes) -> Entry:
    """What lies at `path` below the tree `root`; the root itself for an empty path.

    Raises:
        InvalidArgument: absolute, too long, or with an empty, `.` or `..` component.
        NotFound: nothing is there.
    """
    entry = Entry(b"", b"", TREE_MODE, root)
    for component in _components(path):
        if entry.type != TREE:
            raise NotFound(f"path {_shown(path)} does not exist: {_shown(entry.path)} is no folder")
        prefix = entry.path + b"/" if entry.path else b""
        for name, mode, hex_oid in _parsed_tree(view, entry.oid):
            if name == component:
                entry = Entry(name, prefix + name, mode, bytes.fromhex(hex_oid.decode("ascii")))
                break
        else:
            raise NotFound(f"path {_shown(path)} does not exist")
    return entry


def blob_size(view: RepositoryView, oid: bytes) -> int:
    """Bytes of a blob.

    Raises:
        NotFound: no such object.
        InvalidArgument: another kind of object.
    """
    if oid not in view.packs:
        raise NotFound(f"object {oid.hex()} is not in {view.path!r}")
    kind = view.packs.object_type(oid)
    if kind != BLOB:
        raise InvalidArgument(f"object {oid.hex()} is a {_type_name(kind)}, not a blob")
    return view.packs.object_size(oid)


def commit_content(view: RepositoryView, oid: bytes) -> bytes:
    """A commit as it is stored.

    Raises:
        NotFound: no such object.
        InvalidArgument: another kind of object.
    """
    located = view.packs.locate(oid)
    if located is None:
        raise NotFound(f"object {oid.hex()} is not in {view.path!r}")
    kind, content = view.packs.get_at(*located)
    if kind != COMMIT:
        raise InvalidArgument(f"object {oid.hex()} is a {_type_name(kind)}, not a commit")
    return content


def read_blob(view: RepositoryView, oid: bytes) -> bytes:
    """The content of a blob; check `blob_size` first."""
    return view.packs.get(oid)[1]


def _parse_commit(view: RepositoryView, oid: bytes) -> Commit:
    try:
        commit = Commit.from_raw_string(
            COMMIT, view.packs.get(oid)[1], object_format=view.object_format.dulwich
        )
        if not isinstance(commit, Commit) or len(commit.tree) != view.object_format.hex_bytes:
            raise MalformedObject(f"commit {oid.hex()} is malformed: no tree")
        # dulwich parses lazily; a half-parsed commit must not fail later.
        _ = (commit.author, commit.committer, commit.author_time, commit.commit_time)
    except (ObjectFormatException, ValueError, AttributeError) as error:
        raise MalformedObject(f"commit {oid.hex()} is malformed: {error}") from error
    return commit


def _parsed_tree(view: RepositoryView, tree: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """(name, mode, id in hex) of each entry. Raises what `tree_entries` raises."""
    kind, content = view.packs.get(tree)
    if kind != TREE:
        raise InvalidArgument(f"object {tree.hex()} is a {_type_name(kind)}, not a tree")
    try:
        yield from parse_tree(content, view.object_format.hash_bytes)
    except (ObjectFormatException, ValueError) as error:
        raise MalformedObject(f"tree {tree.hex()} is malformed: {error}") from error


def _components(path: bytes) -> list[bytes]:
    if not path:
        return []
    if len(path) > _PATH_BYTES_MAX:
        raise InvalidArgument(f"path has {len(path)} bytes, at most {_PATH_BYTES_MAX} are allowed")
    components = path.removesuffix(b"/").split(b"/")
    if any(component in (b"", b".", b"..") for component in components):
        raise InvalidArgument(
            f"path {_shown(path)} must be relative to the root, without empty, '.' or '..' parts"
        )
    return components


def _type_name(kind: int) -> str:
    return TYPE_NAMES[kind].decode("ascii")


def _shown(name: bytes) -> str:
    return repr(name[:200].decode("utf-8", "backslashreplace"))

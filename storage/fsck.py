"""Strict checks of commits, trees and tags, with git's fsck message ids, and what they refer to.

Owns the rules of git's fsck.c (2.45). Every check has a fast path, one regular expression over the
whole object that accepts only canonical ones, and a slow path that walks it as git does and says
what is wrong. Must not know where objects come from or whether what they refer to exists:
references are handed to a callback.
"""

from __future__ import annotations

import re
from binascii import unhexlify
from collections.abc import Callable
from typing import Final

from quorepo.storage.errors import CorruptPack
from quorepo.storage.fsck_names import Name, classify_name
from quorepo.storage.fsck_policy import FsckPolicy
from quorepo.storage.objectformat import ObjectFormat
from quorepo.storage.packfile import BLOB, COMMIT, TAG, TREE

__all__ = ["Fsck"]

_TYPE_NUMBERS: Final = {b"commit": COMMIT, b"tree": TREE, b"blob": BLOB, b"tag": TAG}
_KINDS: Final = {b"40000": TREE, b"160000": 0, b"120000": BLOB}  # else BLOB; 0: not followed
_WARNINGS_MAX = 20
_MEMORY_MAX = 200_000  # entries and names that are remembered as checked

_IDENT: Final = rb"[^<>\n]* <[^<>\n]*> (?:0|[1-9][0-9]{0,17}) [+-][0-9]{4}\n"
_DATE: Final = re.compile(rb"(-?[0-9]+)")
_TIMEZONE: Final = re.compile(rb"[+-][0-9]{4}\n")

_NAME_MESSAGES: Final = (
    (Name.FULL_PATH, "fullPathname", "contains full pathnames"),
    (Name.EMPTY, "emptyName", "contains empty pathname"),
    (Name.DOT, "hasDot", "contains '.'"),
    (Name.DOTDOT, "hasDotdot", "contains '..'"),
    (Name.DOTGIT, "hasDotgit", "contains '.git'"),
    (Name.LARGE, "largePathname", "contains excessively large pathname"),
)
_SYMLINK_MESSAGES: Final = (
    (Name.GITMODULES, "gitmodulesSymlink", ".gitmodules is a symbolic link"),
    (Name.GITATTRIBUTES, "gitattributesSymlink", ".gitattributes is a symlink"),
    (Name.GITIGNORE, "gitignoreSymlink", ".gitignore is a symlink"),
    (Name.MAILMAP, "mailmapSymlink", ".mailmap is a symlink"),
)

Entry = tuple[bytes, bytes, bytes]  # mode as text, name, raw id


class Fsck:
    """Checks the objects of one push.

    `refer(oid, type number)` is called for what an object refers to; not for every repeated tree
    entry, but at least once for each distinct one. Every check raises CorruptPack for what the
    policy calls an error. `gitmodules` and `gitattributes` collect the ids of blobs that carry
    such a name and need a check of their content (fsck_blobs.py).
    """

    def __init__(
        self, policy: FsckPolicy, object_format: ObjectFormat, refer: Callable[[bytes, int], None]
    ) -> None:
        self.gitmodules: set[bytes] = set()
        self.gitattributes: set[bytes] = set()
        self.warnings: list[str] = []
        self._policy = policy
        self._refer = refer
        self._zero = object_format.zero
        self._hash_bytes = object_format.hash_bytes
        oid = rb"[0-9a-f]{%d}" % object_format.hex_bytes
        self._oid_line = re.compile(oid + rb"\n")
        self._commit = re.compile(
            rb"tree (%s)\n((?:parent %s\n)*)author %scommitter %s" % (oid, oid, _IDENT, _IDENT)
        )
        self._tree = re.compile(
            rb"(100644|40000|100755|120000|160000) ([^\0/]+)\0(.{%d})" % self._hash_bytes, re.DOTALL
        )
        self._seen_entries: set[Entry] = set()
        self._names: dict[bytes, Name] = {}

    def commit(self, oid: bytes, content: bytes) -> None:
        """Checks a commit; refers to its tree and parents."""
        match = self._commit.match(content)
        if match and b"\0" not in content and (b"\n\n" in content or content[-1:] == b"\n"):
            tree, parents = match.groups()
            self._refer(unhexlify(tree), TREE)
            for line in parents.splitlines():
                self._refer(unhexlify(line[7:]), COMMIT)
            return
        self._commit_slowly(oid, content)

    def _commit_slowly(self, oid: bytes, content: bytes) -> None:
        self._check_headers(oid, content)
        position = self._expect(oid, content, 0, b"tree ", "missingTree")
        tree = self._object_id(oid, content, position, b"tree", "badTreeSha1")
        self._refer(tree, TREE)
        position += 2 * self._hash_bytes + 1
        while content.startswith(b"parent ", position):
            parent = self._object_id(oid, content, position + 7, b"parent", "badParentSha1")
            self._refer(parent, COMMIT)
            position += 7 + 2 * self._hash_bytes + 1
        authors = 0
        while content.startswith(b"author ", position):
            authors += 1
            position = self._ident(oid, content, position + 7)
        if authors == 0:
            self.report(oid, "missingAuthor", "invalid format - expected 'author' line")
        elif authors > 1:
            self.report(oid, "multipleAuthors", "invalid format - multiple 'author' lines")
        if content.startswith(b"committer ", position):
            self._ident(oid, content, position + 10)
        else:
            self.report(oid, "missingCommitter", "invalid format - expected 'committer' line")
        if b"\0" in content:
            self.report(oid, "nulInCommit", "NUL byte in the commit object body")

    def tag(self, oid: bytes, content: bytes) -> None:
        """Checks an annotated tag; refers to its target."""
        self._check_headers(oid, content)
        position = self._expect(oid, content, 0, b"object ", "missingObject")
        target = self._object_id(oid, content, position, b"object", "badObjectSha1")
        position += 2 * self._hash_bytes + 1
        position = self._expect(oid, content, position, b"type ", "missingTypeEntry")
        end = content.find(b"\n", position)
        if end < 0:
            self.report(oid, "missingType", "invalid format - unexpected end after 'type' line")
        type_num = _TYPE_NUMBERS.get(content[position:end])
        if type_num is None:
            self.report(oid, "badType", "invalid 'type' value")
            return
        self._refer(target, type_num)
        self._tag_name_and_tagger(oid, content, end + 1)

    def _tag_name_and_tagger(self, oid: bytes, content: bytes, position: int) -> None:
        if not content.startswith(b"tag ", position):
            self.report(oid, "missingTagEntry", "invalid format - expected 'tag' line")
            return
        end = content.find(b"\n", position)
        if end < 0:
            self.report(oid, "missingTag", "invalid format - unexpected end after 'type' line")
            return
        position = end + 1
        if content.startswith(b"tagger ", position):
            position = self._ident(oid, content, position + 7)
        else:
            self.report(oid, "missingTaggerEntry", "invalid format - expected 'tagger' line")
        if position < len(content) and content[position] != 0x0A:
            self.report(oid, "extraHeaderEntry", "invalid format - extra header(s) after 'tagger'")

    def tree(self, oid: bytes, content: bytes) -> None:
        """Checks a tree; refers to its entries, gitlinks excepted."""
        entries = self._canonical_entries(content)
        if entries is None:
            entries = self._parse_tree_slowly(oid, content)
        names = [name for _, name, _ in entries]
        keys = [name + b"/" if mode == b"40000" else name for (mode, name, _) in entries]
        if keys != sorted(keys):
            self.report(oid, "treeNotSorted", "not properly sorted")
        if len(set(names)) != len(names):
            self.report(oid, "duplicateEntries", "contains duplicate file entries")
        fresh = set(entries)
        fresh -= self._seen_entries
        if fresh:
            self._check_entries(oid, fresh)
            self._remember(fresh)

    def trust_tree(self, content: bytes) -> None:
        """Remembers the entries of a stored tree as checked: the store is closed under references.

        Trees of a push are mostly deltas of stored ones, and differ in a few entries.
        """
        entries = self._canonical_entries(content)
        if entries is not None:
            self._remember({entry for entry in entries if not self._classify(entry[1])})

    def _canonical_entries(self, content: bytes) -> list[Entry] | None:
        """The entries of a tree with canonical modes and names that are not empty; else None."""
        entries: list[Entry] = self._tree.findall(content)
        covered = sum([len(mode) + len(name) for mode, name, _ in entries])
        # Matches do not overlap: when they cover the content, nothing was skipped between them.
        if covered + len(entries) * (self._hash_bytes + 2) != len(content):
            return None
        return entries

    def _remember(self, entries: set[Entry]) -> None:
        if len(self._seen_entries) > _MEMORY_MAX:
            self._seen_entries.clear()
        self._seen_entries |= entries

    def _classify(self, name: bytes) -> Name:
        flags = self._names.get(name)
        if flags is None:
            if len(self._names) > _MEMORY_MAX:
                self._names.clear()
            flags = self._names[name] = classify_name(name)
        return flags

    def _check_entries(self, oid: bytes, entries: set[Entry]) -> None:
        """Checks names of entries that were not seen before, and refers to their objects."""
        refer = self._refer
        known_names = self._names
        for mode, name, entry_oid in entries:
            flags = known_names.get(name)
            if flags is None:
                flags = self._classify(name)
            if flags:
                self._check_special_name(oid, mode, flags, entry_oid)
            if entry_oid == self._zero:
                self.report(oid, "nullSha1", "contains entries pointing to null sha1")
            kind = _KINDS.get(mode, BLOB)
            if kind:
                refer(entry_oid, kind)

    def _check_special_name(self, oid: bytes, mode: bytes, flags: Name, entry_oid: bytes) -> None:
        for flag, message_id, text in _NAME_MESSAGES:
            if flags & flag:
                self.report(oid, message_id, text)
        if mode == b"120000":
            for flag, message_id, text in _SYMLINK_MESSAGES:
                if flags & flag:
                    self.report(oid, message_id, text)
            return
        if flags & Name.GITMODULES:
            self.gitmodules.add(entry_oid)
        if flags & Name.GITATTRIBUTES:
            self.gitattributes.add(entry_oid)

    def _parse_tree_slowly(self, oid: bytes, content: bytes) -> list[Entry]:
        """The entries of a tree that is not canonical, with canonical modes."""
        entries: list[Entry] = []
        position = 0
        while position < len(content):
            space = content.find(b" ", position, position + 8)
            end = content.find(b"\0", space)
            after = end + 1 + self._hash_bytes
            mode = content[position:space]
            if (
                space <= position
                or end <= space + 1
                or after > len(content)
                or not mode.isdigit()
                or mode.strip(b"01234567")
            ):
                self.report(oid, "badTree", "cannot be parsed as a tree")
                break
            if mode.startswith(b"0"):
                self.report(oid, "zeroPaddedFilemode", "contains zero-padded file modes")
            canonical = self._canonical_mode(oid, int(mode, 8))
            entries.append((canonical, content[space + 1 : end], content[end + 1 : after]))
            position = after
        return entries

    def _canonical_mode(self, oid: bytes, mode: int) -> bytes:
        kind = mode & 0o170000
        if kind == 0o100000:
            canonical = 0o100755 if mode & 0o100 else 0o100644
        elif kind in (0o040000, 0o120000, 0o160000):
            canonical = kind
        else:
            self.report(oid, "badTree", f"cannot be parsed as a tree, mode {mode:o}")
            canonical = 0o160000
        if canonical != mode:
            self.report(oid, "badFilemode", "contains bad file modes")
        return b"%o" % canonical

    def _check_headers(self, oid: bytes, content: bytes) -> None:
        """git's verify_headers: no NUL before the body, and the last header line is ended."""
        end = content.find(b"\n\n")
        nul = content.find(b"\0", 0, end if end >= 0 else len(content))
        if nul >= 0:
            self.report(oid, "nulInHeader", f"unterminated header: NUL at offset {nul}")
        if end < 0 and content[-1:] != b"\n":
            self.report(oid, "unterminatedHeader", "unterminated header")

    def _expect(
        self, oid: bytes, content: bytes, position: int, prefix: bytes, message_id: str
    ) -> int:
        if not content.startswith(prefix, position):
            word = prefix.decode().strip()
            self.report(oid, message_id, f"invalid format - expected '{word}' line")
        return position + len(prefix)

    def _object_id(
        self, oid: bytes, content: bytes, position: int, line: bytes, message_id: str
    ) -> bytes:
        if not self._oid_line.match(content, position):
            self.report(oid, message_id, f"invalid '{line.decode()}' line format - bad sha1")
        return unhexlify(content[position : position + 2 * self._hash_bytes])

    def _ident(self, oid: bytes, content: bytes, start: int) -> int:
        """Checks `name <email> date zone`; returns where the next line starts."""
        end = content.find(b"\n", start) + 1
        line = content[start:end]
        problem = _ident_problem(line)
        if problem:
            message_id, text = problem
            self.report(oid, message_id, f"invalid author/committer line - {text}")
        return end

    def report(self, oid: bytes, message_id: str, text: str) -> None:
        """Raises CorruptPack, or keeps a warning, or does nothing, as the policy says."""
        severity = self._policy.severity(message_id)
        if severity == "error":
            raise CorruptPack(
                f"fsck error: {oid.hex()}: {message_id}: {text}",
                message_id=message_id,
                object=oid.hex(),
            )
        if severity == "warn" and len(self.warnings) < _WARNINGS_MAX:
            self.warnings.append(f"object {oid.hex()}: {message_id}: {text}")


def _ident_problem(line: bytes) -> tuple[str, str] | None:
    """What is wrong with an identity line (its newline included), in the order of git's checks."""
    if line.startswith(b"<"):
        return "missingNameBeforeEmail", "missing space before email"
    mark = re.search(rb"[<>\n]", line)
    if mark is None or mark.group() == b"\n":
        return "missingEmail", "missing email"
    if mark.group() == b">":
        return "badName", "bad name"
    if line[mark.start() - 1 : mark.start()] != b" ":
        return "missingSpaceBeforeEmail", "missing space before email"
    mark = re.compile(rb"[<>\n]").search(line, mark.end())
    if mark is None or mark.group() != b">":
        return "badEmail", "bad email"
    if line[mark.end() : mark.end() + 1] != b" ":
        return "missingSpaceBeforeDate", "missing space before date"
    start = mark.end() + 1
    date = _DATE.match(line, start)
    if date is None:
        return "badDate", "bad date"
    if line[start : start + 1] == b"0" and line[start + 1 : start + 2] != b" ":
        return "zeroPaddedDate", "zero-padded date"
    if date.group().startswith(b"-") or len(date.group()) > 19 or int(date.group()) >= 1 << 63:
        return "badDateOverflow", "date causes integer overflow"
    if line[date.end() : date.end() + 1] != b" ":
        return "badDate", "bad date"
    if not _TIMEZONE.fullmatch(line, date.end() + 1):
        return "badTimezone", "bad time zone"
    return None

"""git's fsck messages and how severe each is when a push is checked (`receive.fsckObjects`).

Owns the table of fsck.h and the policy that relaxes single messages, as `receive.fsck.<msg-id>`
does. git checks what it receives strictly, so a warning of `git fsck` is an error here; infos are
let through. Knows nothing of objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, cast

from quorepo.storage.errors import InvalidArgument

__all__ = ["FsckPolicy", "Severity"]

Severity = Literal["ignore", "warn", "error"]

_ERRORS: Final[tuple[str, ...]] = (
    "badDate",
    "badDateOverflow",
    "badEmail",
    "badName",
    "badTimezone",
    "badTagObject",
    "duplicateEntries",
    "gitattributesBlob",
    "gitattributesLarge",
    "gitattributesLineLength",
    "gitattributesMissing",
    "gitmodulesBlob",
    "gitmodulesLarge",
    "gitmodulesMissing",
    "gitmodulesName",
    "gitmodulesPath",
    "gitmodulesSymlink",
    "gitmodulesUpdate",
    "gitmodulesUrl",
    "missingAuthor",
    "missingCommitter",
    "missingEmail",
    "missingNameBeforeEmail",
    "missingSpaceBeforeDate",
    "missingSpaceBeforeEmail",
    "missingTag",
    "missingTagEntry",
    "multipleAuthors",
    "treeNotSorted",
    "zeroPaddedDate",
    "emptyName",
    "fullPathname",
    "hasDot",
    "hasDotdot",
    "hasDotgit",
    "largePathname",
    "nulInCommit",
    "nullSha1",
    "zeroPaddedFilemode",
)

# Without these an object cannot be read, or what it refers to is not known: never relaxed.
# git makes badFilemode an info and takes an unknown mode for a gitlink; readers disagree about it,
# so here a mode that is no file, symlink, folder or gitlink is badTree.
_FATAL: Final[tuple[str, ...]] = (
    "badObjectSha1",
    "badParentSha1",
    "badTree",
    "badTreeSha1",
    "badType",
    "missingObject",
    "missingTree",
    "missingType",
    "missingTypeEntry",
    "nulInHeader",
    "unknownType",
    "unterminatedHeader",
)

_INFOS: Final[tuple[str, ...]] = (
    "badFilemode",
    "badTagName",
    "gitattributesSymlink",
    "gitignoreSymlink",
    "gitmodulesParse",
    "mailmapSymlink",
    "missingTaggerEntry",
)

_IGNORED: Final[tuple[str, ...]] = ("extraHeaderEntry",)

_DEFAULTS: Final[dict[str, Severity]] = {
    **dict.fromkeys((*_ERRORS, *_FATAL), "error"),
    **dict.fromkeys(_INFOS, "warn"),
    **dict.fromkeys(_IGNORED, "ignore"),
}
_BY_LOWER: Final = {message_id.lower(): message_id for message_id in _DEFAULTS}


class FsckPolicy:
    """How severe each fsck message is. The default is git's for received objects."""

    __slots__ = ("_severities", "overrides")

    def __init__(self, overrides: Mapping[str, str] | None = None) -> None:
        """`overrides` maps message ids (as git spells them, in any case) to ignore, warn or error.

        Raises InvalidArgument for an unknown id or severity, or when a message is to be relaxed
        without which objects cannot be read.
        """
        self.overrides: dict[str, Severity] = {}
        for key, severity in (overrides or {}).items():
            message_id = _BY_LOWER.get(key.lower())
            if message_id is None:
                raise InvalidArgument(f"unknown fsck message id {key!r}")
            if severity not in ("ignore", "warn", "error"):
                raise InvalidArgument(f"fsck severity {severity!r} is not ignore, warn or error")
            if message_id in _FATAL and severity != "error":
                raise InvalidArgument(f"fsck message {message_id!r} cannot be relaxed")
            self.overrides[message_id] = cast(Severity, severity)
        self._severities: dict[str, Severity] = {**_DEFAULTS, **self.overrides}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FsckPolicy) and other.overrides == self.overrides

    def __hash__(self) -> int:
        return hash(frozenset(self.overrides.items()))

    def __repr__(self) -> str:
        return f"FsckPolicy({self.overrides!r})"

    def severity(self, message_id: str) -> Severity:
        """What to do about a message with this id, spelled as git does."""
        return self._severities[message_id]

"""Paths of repositories: what a client may call a repository, in one normal form.

Owns the rules; a path is a name in the directory, never a path on disk. Knows nothing of who owns
what.
"""

from __future__ import annotations

import unicodedata

from quorepo.storage.errors import InvalidArgument

__all__ = ["COMPONENT_BYTES_MAX", "PATH_BYTES_MAX", "normalize_path"]

PATH_BYTES_MAX = 1024
COMPONENT_BYTES_MAX = 255

# Controls, and the separators that break a line in logs and terminals.
_REFUSED_CATEGORIES = frozenset({"Cc", "Zl", "Zp"})


def normalize_path(path: str) -> str:
    """The normal form of a repository path, such as "team/app" of "/team/app.git".

    Leading and trailing slashes and one trailing ".git" are dropped. Applying it twice changes
    nothing. Raises InvalidArgument when a name is empty, ".", "..", starts with ".", ends in ".git"
    or ".lock", holds a control character, a backslash or something that is not UTF-8, or is too
    long.
    """
    name = path.strip("/").removesuffix(".git")
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidArgument("repository path is not UTF-8") from None
    if not encoded:
        raise InvalidArgument(f"repository path {path[:80]!r} is empty")
    if len(encoded) > PATH_BYTES_MAX:
        raise InvalidArgument(
            f"repository path has {len(encoded)} bytes; at most {PATH_BYTES_MAX} are allowed"
        )
    for component in name.split("/"):
        reason = _refusal(component)
        if reason:
            raise InvalidArgument(f"repository path {path!r} {reason}")
    return name


def _refusal(component: str) -> str:
    """Why this part of a path is refused; empty when it is fine."""
    if not component:
        return "has an empty component"
    if component.startswith("."):
        return f"has the component {component!r}, which starts with '.'"
    if component.endswith((".git", ".lock")):
        return f"has the component {component!r}, which ends in '.git' or '.lock'"
    if "\\" in component:
        return "holds a backslash"
    if any(unicodedata.category(character) in _REFUSED_CATEGORIES for character in component):
        return "holds a control character"
    if len(component.encode()) > COMPONENT_BYTES_MAX:
        return f"has a component of more than {COMPONENT_BYTES_MAX} bytes"
    return ""

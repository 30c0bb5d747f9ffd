"""Which names a ref may have: exactly those of `git check-ref-format`, below `refs/`.

Knows nothing of repositories: conflicts of `a` with `a/b` are the state machine's matter.
Source: git's refs.c, check_refname_component() and check_refname_format().
"""

from __future__ import annotations

import re

__all__ = ["check_ref_name"]

# Control characters, DEL and the characters with a meaning in revisions, refspecs and patterns.
_FORBIDDEN = re.compile(rb"[\x00-\x20\x7f~^:?*\[\\]")


def check_ref_name(name: bytes) -> str | None:
    """None when `name` may be created in a repository, else the reason in lowercase words.

    As git's receive-pack does, the part after `refs/` is checked and must itself have two levels:
    `refs/heads/main` is fine, `refs/main` is not.
    """
    if not name.startswith(b"refs/"):
        return "ref name does not start with 'refs/'"
    if name.count(b"/") < 2:
        return "ref name has less than two levels below 'refs/'"
    if (found := _FORBIDDEN.search(name)) is not None:
        return f"ref name has forbidden character {found.group().decode('latin-1')!r}"
    if b".." in name:
        return "ref name has '..'"
    if b"@{" in name:
        return "ref name has '@{'"
    if name.endswith(b"."):
        return "ref name ends with '.'"
    for component in name[5:].split(b"/"):
        if not component:
            return "ref name has an empty component"
        if component.startswith(b"."):
            return "ref name has a component that starts with '.'"
        if component.endswith(b".lock"):
            return "ref name has a component that ends with '.lock'"
    return None

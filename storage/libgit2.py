"""libgit2, cut off from this machine's configuration: whoever opens a repository with it, imports
this first.

By default it reads /etc/gitconfig, ~/.gitconfig and their like, whose rename limits, attributes and
filters would make the answer depend on the node, and whose mistakes would make it fail.
"""

from __future__ import annotations

import pygit2
from pygit2.enums import ConfigLevel, MergeFlag

__all__ = ["RENAMES", "cut_off"]

RENAMES = MergeFlag.FIND_RENAMES  # what every merge is asked for, as git's are by default


def cut_off() -> None:
    """Clears the paths that libgit2 looks for configuration and attributes on, in this process."""
    for level in (
        ConfigLevel.PROGRAMDATA,
        ConfigLevel.SYSTEM,
        ConfigLevel.XDG,
        ConfigLevel.GLOBAL,
    ):
        pygit2.settings.search_path[level] = ""
    pygit2.settings.template_path = ""
    # The folders are this node's own, whatever user it runs as; safe.directory can't say so.
    pygit2.settings.owner_validation = False

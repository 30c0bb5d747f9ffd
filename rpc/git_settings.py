"""The `[git]` table of the configuration: what git clients get to see, and what they may push.

Owns its keys and what they mean. Must not know how refs are read or objects are checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from quorepo.storage.errors import InvalidArgument
from quorepo.storage.fsck_policy import FsckPolicy
from quorepo.storage.git.refnames import check_ref_name
from quorepo.storage.names import normalize_path

__all__ = ["GitSection", "is_hidden"]


def _check_prefix(prefix: str) -> str:
    problem = check_ref_name(prefix.encode() + b"/x")
    if problem is not None or prefix in ("refs", "refs/heads"):
        raise ValueError(
            f"{prefix!r} must be the start of ref names, as in 'refs/internal', without a slash "
            "at its end"
        )
    return prefix


def _check_fsck(policies: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    checked: dict[str, dict[str, str]] = {}
    for path, overrides in policies.items():
        try:
            FsckPolicy(overrides)
            checked[normalize_path(path)] = dict(overrides)
        except InvalidArgument as error:
            raise ValueError(f"{path!r}: {error}") from error
    return checked


class GitSection(BaseModel):
    """What git clients get to see and may push. The API shows hidden refs to admins only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden_refs: tuple[Annotated[str, AfterValidator(_check_prefix)], ...] = Field(
        (),
        description="Starts of ref names (`refs/internal`) that git clients neither see, fetch nor "
        "push, nor what only such refs reach (git's transfer.hideRefs). In the API only tokens "
        "with the role admin see and change them.",
    )

    bundle_uri: bool = Field(
        True,
        description="Are clients offered the largest pack of a repository as a file at a signed "
        "URL (git's bundle-uri, for those with transfer.bundleURI)?",
    )

    fsck: Annotated[dict[str, dict[str, str]], AfterValidator(_check_fsck)] = Field(
        default_factory=dict,
        description="By repository path: fsck message ids and what to do about them in its pushes, "
        "ignore, warn or error (git's receive.fsck.<msg-id>). The same on every node.",
    )

    def fsck_policy(self, path: str) -> FsckPolicy:
        """How strictly the pushes to a repository are checked."""
        return FsckPolicy(self.fsck.get(path))

    @property
    def hidden_prefixes(self) -> tuple[bytes, ...]:
        """The same as bytes."""
        return tuple(prefix.encode() for prefix in self.hidden_refs)


def is_hidden(name: bytes, prefixes: tuple[bytes, ...]) -> bool:
    """Whether a ref is one of `prefixes` or below it, as in git's refs.c, ref_is_hidden()."""
    return any(name == prefix or name.startswith(prefix + b"/") for prefix in prefixes)

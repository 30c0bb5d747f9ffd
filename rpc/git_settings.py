"""The `[git]` table of the configuration: what git clients get to see.

Owns its keys and what they mean for a ref name. Must not know how refs are read or sent.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from quorepo.storage.git.refnames import check_ref_name

__all__ = ["GitSection", "is_hidden"]


def _check_prefix(prefix: str) -> str:
    problem = check_ref_name(prefix.encode() + b"/x")
    if problem is not None or prefix in ("refs", "refs/heads"):
        raise ValueError(
            f"{prefix!r} must be the start of ref names, as in 'refs/internal', without a slash "
            "at its end"
        )
    return prefix


class GitSection(BaseModel):
    """What git clients get to see. The gRPC API shows everything."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden_refs: tuple[Annotated[str, AfterValidator(_check_prefix)], ...] = Field(
        (),
        description="Starts of ref names (`refs/internal`) that git clients neither see, fetch nor "
        "push, nor what only such refs reach (git's transfer.hideRefs).",
    )

    @property
    def hidden_prefixes(self) -> tuple[bytes, ...]:
        """The same as bytes."""
        return tuple(prefix.encode() for prefix in self.hidden_refs)


def is_hidden(name: bytes, prefixes: tuple[bytes, ...]) -> bool:
    """Whether a ref is one of `prefixes` or below it, as in git's refs.c, ref_is_hidden()."""
    return any(name == prefix or name.startswith(prefix + b"/") for prefix in prefixes)

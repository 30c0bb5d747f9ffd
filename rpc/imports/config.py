"""The `[imports]` section: from where repositories may be imported, and how much at a time.

Owns names, defaults and bounds. The keys say `imports` because `import` is no name in Python.
"""

from __future__ import annotations

from pydantic import Field

from quorepo.rpc.config_types import AbsolutePath, Section

__all__ = ["ImportsSection"]

MIB = 1024**2
GIB = 1024**3


class ImportsSection(Section):
    """Imports from other git servers over HTTP(S). Sizes in bytes, times in seconds."""

    allow_http: bool = Field(
        False, description="May the source be asked over http:// too, which anyone can change?"
    )
    allow_private: bool = Field(
        False,
        description="May the source have an address that is not public (loopback, link-local, "
        "private networks)? Whoever may create repositories then reaches what this node reaches.",
    )
    ca_file: AbsolutePath | None = Field(
        None, description="CA certificates (PEM) of sources, instead of this machine's."
    )
    concurrent_max: int = Field(
        2, ge=1, le=64, description="Most imports that this node runs at a time."
    )
    bytes_max: int = Field(
        2 * GIB, ge=1, description="Most bytes that one import receives, refs included."
    )
    timeout_s: float = Field(
        3600.0, gt=0, description="Longest time that one import may take to receive its objects."
    )
    idle_timeout_s: float = Field(
        60.0, gt=0, description="Longest time that the source may say nothing."
    )
    redirects_max: int = Field(
        3, ge=0, le=20, description="Most redirects that one request to the source follows."
    )
    memory_bytes_max: int = Field(
        512 * MIB,
        ge=96 * MIB,
        description="Private memory of the process of one import, in bytes (RLIMIT_DATA).",
    )
    kept_s: float = Field(
        3600.0, gt=0, description="How long an import that is over is told of by GetOperation."
    )
    kept_max: int = Field(
        1000, ge=1, le=10_000, description="Most imports that are told of, the oldest go first."
    )

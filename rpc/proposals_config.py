"""The section [proposals] of a node's configuration: see config.py and core_batches.py."""

from __future__ import annotations

from pydantic import Field

from quorepo.rpc.config_types import Section

__all__ = ["ProposalsSection"]

KIB = 1024
MIB = 1024 * KIB


class ProposalsSection(Section):
    """Commands that this node's edge proposes in the same moment travel to its core in one call.
    None of it refuses anything: what does not fit goes in a call of its own."""

    call_commands_max: int = Field(
        128, ge=1, le=4096, description="Most commands in one such call; 1: each goes alone."
    )
    call_bytes_max: int = Field(
        4 * MIB,
        ge=1,
        le=8 * MIB,
        description="Most bytes of the commands in one such call (a larger command goes alone).",
    )
    shared_command_bytes_max: int = Field(
        64 * KIB,
        ge=0,
        le=1 * MIB,
        description="A command with more bytes than this never shares a call: it saves nothing by "
        "company.",
    )

"""Values of the configuration file that several sections share: addresses, names, paths.

Owns their rules and what is said when one is broken. Must not know any section.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo

__all__ = [
    "AbsolutePath",
    "Address",
    "NodeName",
    "ReachableAddress",
    "Section",
    "is_wildcard",
    "machine_host",
    "machine_name",
    "split_address",
]

_NODE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - what a listener may be told


def split_address(address: str) -> tuple[str, int]:
    """Splits `HOST:PORT` or `[V6]:PORT`.

    Returns:
        The host without brackets and the port.

    Raises:
        ValueError: no port, or a port outside 1..65535.
    """
    host, separator, port = address.rpartition(":")
    if not separator or not host:
        raise ValueError(f"expected HOST:PORT, got {address!r}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"an IPv6 address needs brackets, as in [::1]:7420; got {address!r}")
    if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError(f"port must be 1 to 65535, got {address!r}")
    return host, int(port)


def is_wildcard(host: str) -> bool:
    """Is it every address of a machine?"""
    return host in _WILDCARDS


def machine_host() -> str:
    """The host name of the machine, in lower case."""
    return socket.gethostname().lower()


def machine_name() -> str:
    """The same up to its first dot."""
    return machine_host().partition(".")[0]


def _check_address(address: str) -> str:
    split_address(address)
    return address


def _check_reachable_address(address: str) -> str:
    host, _port = split_address(address)
    if is_wildcard(host):
        raise ValueError(f"{address!r} is every address of a machine; name the one to connect to")
    return address


def _check_node_name(name: str) -> str:
    if not _NODE_NAME.fullmatch(name):
        raise ValueError(
            f"node name {name!r} must be 1 to 32 of a-z, 0-9 and '-', with no '-' at either end"
        )
    return name


def _absolute(path: Path, info: ValidationInfo) -> Path:
    """Relative paths are relative to the file that holds them, not to where the process started."""
    base = (info.context or {}).get("base", Path.cwd())
    return Path(base / path.expanduser()).resolve()


Address = Annotated[str, AfterValidator(_check_address)]
ReachableAddress = Annotated[str, AfterValidator(_check_reachable_address)]
NodeName = Annotated[str, AfterValidator(_check_node_name)]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


class Section(BaseModel):
    """A section of the file: frozen, and no key but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

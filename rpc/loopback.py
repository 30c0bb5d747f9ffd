"""Does an address stay on this machine? Owns the answer for listeners and for clients.

Clients import it before anything heavy: standard library only.
"""

from __future__ import annotations

import ipaddress

__all__ = ["is_loopback", "stays_here"]


def is_loopback(host: str) -> bool:
    """Does this host never leave the machine? A name other than localhost may."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def stays_here(endpoint: str) -> bool:
    """The same of `HOST:PORT`, `[V6]:PORT`, a host alone, or `unix:PATH`."""
    if endpoint.startswith("unix:"):
        return True
    return is_loopback(endpoint.rpartition(":")[0].strip("[]") or endpoint)

"""Connections to servers that a client of ours has named: to allowed addresses only.

Owns which addresses these are. A name is resolved once for each connection, all its addresses are
judged, and the connection goes to one that was judged, so an answer of DNS that changes in between
changes nothing. Redirects connect in the same way. Must not know git.
"""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

__all__ = ["AddressRefused", "is_public", "pool_manager"]

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_IPV4_BYTES = 4


class AddressRefused(HTTPError):
    """The host has an address that is not public, and only public ones are allowed."""


def is_public(text: str) -> bool:
    """Whether anyone may be sent to this address: a global unicast one, also behind a translation
    of IPv4 addresses into IPv6 ones.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            embedded = ipaddress.IPv4Address(address.packed[-_IPV4_BYTES:])
        if embedded is not None:
            return is_public(str(embedded))
        if address.teredo is not None or address.is_site_local:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


class _Checked:
    """Connects to addresses that were judged; mixed into urllib3's connections."""

    allow_private = False
    host: str
    port: int
    timeout: float | None
    socket_options: Any

    def _new_conn(self) -> socket.socket:
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        if not self.allow_private:
            for *_, address in found:
                if not is_public(str(address[0])):
                    raise AddressRefused(f"{self.host} has the address {address[0]}")
        failed = OSError(f"{self.host} has no address")
        for family, kind, protocol, _name, address in found:
            made = socket.socket(family, kind, protocol)
            try:
                made.settimeout(self.timeout)
                made.connect(address)  # what was judged, without another question to DNS
            except OSError as error:
                made.close()
                failed = error
                continue
            for option in self.socket_options or ():
                made.setsockopt(*option)
            return made
        raise failed


class _CheckedHttp(_Checked, HTTPConnection):
    pass


class _CheckedHttps(_Checked, HTTPSConnection):
    pass


def pool_manager(
    *,
    allow_http: bool,
    allow_private: bool,
    redirects_max: int,
    idle_timeout_s: float,
    ca_file: Path | None,
) -> urllib3.PoolManager:
    """A manager whose connections, those after redirects too, go to allowed addresses only; nothing
    of the environment (proxies) is looked at. Failures are not repeated.
    """
    manager = urllib3.PoolManager(
        num_pools=4,
        retries=urllib3.Retry(
            total=None, connect=0, read=0, status=0, other=0, redirect=redirects_max
        ),
        timeout=urllib3.Timeout(connect=idle_timeout_s, read=idle_timeout_s),
        cert_reqs="CERT_REQUIRED",
        ca_certs=None if ca_file is None else str(ca_file),
    )

    class Http(_CheckedHttp):
        pass

    class Https(_CheckedHttps):
        pass

    Http.allow_private = Https.allow_private = allow_private

    class HttpPool(HTTPConnectionPool):
        ConnectionCls = Http

    class HttpsPool(HTTPSConnectionPool):
        ConnectionCls = Https

    manager.pool_classes_by_scheme = {"https": HttpsPool}
    if allow_http:
        manager.pool_classes_by_scheme["http"] = HttpPool
    else:
        del manager.key_fn_by_scheme["http"]  # URLSchemeUnknown, as for every other scheme
    return manager

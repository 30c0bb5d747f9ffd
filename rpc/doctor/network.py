"""Checks that need the network: who listens where, who hears whom, versions, clocks.

The addresses of the others come from this node's own disk, or from the configuration before it has
one; so everything but "do the others hear me" works on a stopped node.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import socket
import ssl
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from quorepo import __version__
from quorepo.cluster.peer.certificates import node_dns_name
from quorepo.cluster.state.levels import told
from quorepo.cluster.state.reader import StateReader
from quorepo.rpc.config_types import is_wildcard, split_address
from quorepo.rpc.doctor.findings import Finding, Machine
from quorepo.rpc.tls import trusted_by
from quorepo.storage.errors import QuorepoError
from quorepo.storage.layout import GroupLayout
from quorepo.v1 import cluster_pb2, cluster_pb2_grpc

__all__ = [
    "Other",
    "check_addresses",
    "check_clocks",
    "check_heard",
    "check_peers",
    "check_versions",
    "other_nodes",
]

_SKEW_WARNING_S, _SKEW_ERROR_S = 2.0, 60.0
_THREADS_MAX = 16
_AT_ONCE_S = 1.0


class Other:
    """Another node as this one knows it; empty where it does not."""

    def __init__(self, name: str, peer: str, row: Any = None) -> None:
        self.name = name
        self.peer = peer
        self.grpc: str = row.grpc_address if row else ""
        self.http: str = row.http_url if row else ""
        self.version: str = told(row.version)[0] if row else ""


def other_nodes(machine: Machine) -> list[Other]:
    """From the directory on this node's disk, else from cluster.peers."""
    own = machine.config.node.name
    reader = StateReader(GroupLayout(machine.config.node.data_dir, 0))
    with contextlib.closing(reader):
        try:
            rows = reader.nodes()
        except QuorepoError:
            rows = []
    if rows:
        return [Other(row.name, row.peer_address, row) for row in rows if row.name != own]
    peers = machine.config.cluster.peers
    return [Other(name, address) for name, address in peers.items() if name != own]


def check_addresses(machine: Machine) -> Iterator[Finding]:
    """A running node answers where it listens; for a stopped one the address is free."""
    good = []
    for name in ("http", "grpc", "metrics", "peer"):
        address = getattr(machine.config.listen, name)
        host, port = split_address(address)
        try:
            if machine.running:
                target = "localhost" if is_wildcard(host) else host
                socket.create_connection((target, port), machine.timeout_s).close()
            else:
                _bind(host, port)
        except OSError as error:
            reason = error.strerror or str(error)
            if machine.running:
                yield Finding(
                    10,
                    "error",
                    f"the node runs, but nothing answers at listen.{name} {address}: {reason}",
                    "look at its log: is a part of it starting again and again?",
                )
            else:
                yield Finding(
                    10,
                    "error",
                    f"listen.{name} {address} cannot be used: {reason}",
                    f"ss -ltnp 'sport = :{port}' shows who listens there; or change listen.{name}",
                )
        else:
            good.append(name)
    if good:
        state = "answering" if machine.running else "free"
        yield Finding(10, "ok", f"{', '.join(good)}: {state}")


def _bind(host: str, port: int) -> None:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _name, address = found[0]
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)


def check_peers(machine: Machine, others: Sequence[Other]) -> Iterator[Finding]:
    """Each one's peer port, with mutual TLS, from this machine."""
    tls = machine.config.cluster.tls
    try:
        context = ssl.create_default_context(cafile=str(tls.ca_file))
        context.load_cert_chain(tls.certificate_file, tls.key_file)
    except (OSError, ssl.SSLError) as error:
        yield Finding(11, "skipped", f"no usable certificate of this node ({error})", "see check 7")
        return
    context.set_alpn_protocols(["h2"])

    def probe(other: Other) -> Finding:
        try:
            _handshake(other, context, machine.timeout_s)
        except ssl.SSLCertVerificationError as error:
            return Finding(
                11,
                "error",
                f"{other.name} at {other.peer} shows a certificate that is not its "
                f"own or not of our CA: {error.verify_message}",
                "is the address that of another node or cluster? All nodes need one CA",
            )
        except ssl.SSLError as error:
            return Finding(
                11,
                "error",
                f"{other.name} at {other.peer} refuses our certificate: {error.reason}",
                "all nodes need certificates of one CA, see check 7",
            )
        except (OSError, ValueError) as error:
            return Finding(
                11,
                "error",
                f"{other.name} at {other.peer}: {error.args[-1]}",
                f"is {other.name} running, and does every firewall let this port through?",
            )
        return Finding(
            11, "ok", f"{other.name} at {other.peer}: certificate of {node_dns_name(other.name)}"
        )

    yield from _each(others, probe)
    if not others:
        yield Finding(11, "info", "no other node is known here")


def _handshake(other: Other, context: ssl.SSLContext, timeout_s: float) -> None:
    host, port = split_address(other.peer)
    with (
        socket.create_connection((host, port), timeout_s) as plain,
        context.wrap_socket(plain, server_hostname=node_dns_name(other.name)) as secure,
    ):
        # In TLS 1.3 the other side judges our certificate after the handshake; what it says first
        # (HTTP/2 settings, or an alert) tells.
        secure.settimeout(_AT_ONCE_S)
        with contextlib.suppress(TimeoutError):
            secure.recv(1)


def check_heard(machine: Machine, others: Sequence[Other]) -> Iterator[Finding]:
    """Does each of the others have a connection with this node? Asked of them, over their API."""
    if not machine.running:
        yield Finding(12, "skipped", "the node is stopped", "start it, then run doctor again")
        return
    if not machine.token:
        yield Finding(
            12,
            "skipped",
            "no access token to ask the others with",
            "pass --token-file FILE, or export QUOREPO_TOKEN=…",
        )
        return
    own = machine.config.node.name

    def ask(other: Other) -> Finding:
        if not other.grpc:
            return Finding(12, "skipped", f"the gRPC address of {other.name} is not known here")
        try:
            with _channel(machine, other.grpc) as channel:
                status = cluster_pb2_grpc.ClusterServiceStub(channel).GetStatus(
                    cluster_pb2.GetStatusRequest(this_node_only=True),
                    timeout=machine.timeout_s,
                    metadata=(("authorization", f"Bearer {machine.token}"),),
                )
        except grpc.RpcError as error:
            call: Any = error
            return Finding(
                12,
                "error",
                f"{other.name} cannot be asked at {other.grpc}: {call.code().name.lower()}",
                f"is {other.name} running? systemctl status "
                f"quorepo@{other.name}; is the token known there?",
            )
        replicas = [r for group in status.groups for r in group.replicas if r.node == own]
        if not replicas:
            return Finding(
                12,
                "warning",
                f"{other.name} does not count {own} as a member",
                "was this node removed, or is it of another cluster? quorepo status",
            )
        if not all(replica.connected for replica in replicas):
            return Finding(
                12,
                "error",
                f"{other.name} has no connection with {own}",
                f"can {other.name} reach {machine.config.advertise.peer_address}? Run doctor there",
            )
        return Finding(12, "ok", f"{other.name} hears {own}")

    yield from _each(others, ask)
    if not others:
        yield Finding(12, "info", "no other node is known here")


@contextlib.contextmanager
def _channel(machine: Machine, address: str) -> Iterator[grpc.Channel]:
    options = [("grpc.enable_http_proxy", 0)]
    tls = machine.config.grpc.tls
    if tls is None:
        channel = grpc.insecure_channel(address, options=options)
    else:
        credentials = grpc.ssl_channel_credentials(trusted_by(tls, machine.config.cluster.tls))
        channel = grpc.secure_channel(address, credentials, options=options)
    with channel:
        yield channel


def check_versions(machine: Machine, others: Sequence[Other]) -> Iterator[Finding]:
    """This program against what the nodes registered when they started last."""
    different = [other for other in others if other.version and other.version != __version__]
    if different:
        listed = ", ".join(f"{other.name} {other.version}" for other in different)
        yield Finding(
            9,
            "warning",
            f"this program is {__version__}, others started last with: {listed}",
            "finish the upgrade: one version on all nodes, restarted one at a time",
        )
    else:
        known = sum(bool(other.version) for other in others)
        yield Finding(9, "ok", f"{__version__}, as {known} other node(s)")


def check_clocks(machine: Machine, others: Sequence[Other]) -> Iterator[Finding]:
    """This machine's clock against the Date header of the others' HTTP, to about half a second."""
    asked = [other for other in others if other.http]
    if not asked:
        yield Finding(
            13,
            "skipped" if others else "info",
            "no HTTP address of another node is known here",
            "run doctor again once this node is a member",
        )
        return

    def ask(other: Other) -> Finding:
        try:
            skew = _skew_s(machine, other.http)
        except (OSError, ValueError, http.client.HTTPException) as error:
            return Finding(
                13,
                "skipped",
                f"{other.name} does not answer at {other.http} ({error})",
                "see check 11",
            )
        text = f"{other.name} is {abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'}"
        step = "is chrony or systemd-timesyncd running on both? timedatectl"
        if abs(skew) > _SKEW_ERROR_S:
            return Finding(13, "error", f"{text}: certificates and request ids depend on it", step)
        if abs(skew) > _SKEW_WARNING_S:
            return Finding(13, "warning", text, step)
        return Finding(13, "ok", f"{other.name}: less than {_SKEW_WARNING_S:g} s apart")

    yield from _each(asked, ask)


def _skew_s(machine: Machine, url: str) -> float:
    """Seconds that the other clock is ahead of ours."""
    parts = urllib.parse.urlsplit(url)
    host, port = parts.hostname or "", parts.port
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        tls = machine.config.http.tls
        trusted = None if tls is None else trusted_by(tls, machine.config.cluster.tls)
        context = ssl.create_default_context(cadata=None if trusted is None else trusted.decode())
        connection = http.client.HTTPSConnection(
            host, port, timeout=machine.timeout_s, context=context
        )
    else:
        connection = http.client.HTTPConnection(host, port, timeout=machine.timeout_s)
    with contextlib.closing(connection):
        before = time.time()
        connection.request("GET", "/")
        date = connection.getresponse().getheader("Date")
        middle = (before + time.time()) / 2
    if date is None:
        raise ValueError("no Date header")
    # The header has whole seconds, cut off: on average half a second is missing.
    return email.utils.parsedate_to_datetime(date).timestamp() + 0.5 - middle


def _each(others: Sequence[Other], ask: Callable[[Other], Finding]) -> Iterator[Finding]:
    if others:
        with ThreadPoolExecutor(min(len(others), _THREADS_MAX)) as pool:
            yield from pool.map(ask, others)

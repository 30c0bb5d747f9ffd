"""TLS of the listeners of clients: which certificate is shown, and when another one.

Owns reading, checking and issuing a listener's certificate, and noticing that files changed. A
change that can't be used is told and the certificate before stays. Must not know what is served.

A new certificate is for new connections; those that stand keep theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import logging
import os
import ssl
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc
from cryptography import x509

from quorepo.cluster.peer.authority import issue_listener_certificate, load_authority
from quorepo.cluster.peer.certificates import (
    EXPIRY_WARNING,
    check_dates,
    checked_key,
    read_certificates,
)
from quorepo.rpc.cluster_config import TlsSection
from quorepo.rpc.config import NodeConfig
from quorepo.rpc.config_types import is_wildcard, machine_host, split_address
from quorepo.rpc.listener_config import ListenerTls
from quorepo.rpc.metrics import EdgeMetrics
from quorepo.storage.errors import ConfigError
from quorepo.storage.logs import fields

__all__ = ["ListenerCertificate", "listener_certificates", "trusted_by"]

log = logging.getLogger(__name__)

_CHECK_INTERVAL_S = 5.0
_TOLD_INTERVAL = datetime.timedelta(days=1)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@dataclasses.dataclass(frozen=True, slots=True)
class _Shown:
    """What the listener shows now, PEM."""

    certificate_pem: bytes
    client_ca_pem: bytes | None
    expires_at: datetime.datetime
    key_pem: bytes = dataclasses.field(repr=False)
    files: tuple[object, ...] = ()  # what the files looked like


class ListenerCertificate:
    """The certificate of one listener; used in the event loop, asked by gRPC from any thread."""

    def __init__(
        self,
        name: str,
        tls: ListenerTls,
        cluster: TlsSection,
        hosts: Sequence[str],
        metrics: EdgeMetrics,
        now: Callable[[], datetime.datetime] = _now,
    ) -> None:
        """Loads it. `name` is http, grpc or metrics; `hosts` stand in one that the CA signs.

        Raises:
            ConfigError: a file is missing or wrong, or there is no CA key to sign with.
        """
        self.name = name
        self._tls = tls
        self._cluster = cluster
        self._hosts = tuple(hosts)
        self._now = now
        self._reloads = metrics.certificate_reloads
        self._told = datetime.datetime.min.replace(tzinfo=datetime.UTC)
        self._problem = ""
        self._shown = self._load()
        self._context = self._new_context(self._shown)
        expiry = metrics.listener_certificate_expiry.labels(name)
        expiry.set_function(lambda: (self._shown.expires_at - now()).total_seconds())

    # ---- what servers take

    def ssl_context(self) -> ssl.SSLContext:
        """For an HTTP server; connections get the newest certificate. Who may connect (the client
        CAs) stays as it was at the start."""
        context = self._new_context(self._shown)

        def choose(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            connection.context = self._context

        context.sni_callback = choose
        return context

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For a gRPC server; connections get the newest certificate and client CAs."""
        served = self._shown

        def newest() -> grpc.ServerCertificateConfiguration | None:
            nonlocal served
            if self._shown is served:
                return None  # as before
            served = self._shown
            return _grpc_configuration(served)

        return grpc.dynamic_ssl_server_credentials(
            _grpc_configuration(served),
            newest,  # type: ignore[arg-type] # None is how it says "as before"
            require_client_authentication=served.client_ca_pem is not None,
        )

    # ---- changes

    async def watch(self, interval_s: float = _CHECK_INTERVAL_S) -> None:
        """Runs for ever: takes files that changed, issues in time, tells of an end that is near."""
        while True:
            self.refresh()
            await asyncio.sleep(interval_s)

    def refresh(self) -> None:
        """One look at the files and the clock."""
        self._tell_of_the_end()
        if not self._is_due():
            return
        try:
            shown = self._load()
            context = self._new_context(shown)
        except ConfigError as error:
            if str(error) != self._problem:  # once per mistake, not every few seconds
                self._problem = str(error)
                self._reloads.labels(self.name, "failed").inc()
                log.error(
                    "the new certificate is not usable, the one before stays",
                    extra=fields(listener=self.name, error=str(error)),
                )
            return
        self._shown, self._context, self._problem = shown, context, ""
        self._reloads.labels(self.name, "ok").inc()
        log.info(
            "certificate changed",
            extra=fields(listener=self.name, expires_at=f"{shown.expires_at:%Y-%m-%dT%H:%M:%SZ}"),
        )

    def _is_due(self) -> bool:
        now = self._now()
        ends = self._shown.expires_at - now < EXPIRY_WARNING
        if self._tls.certificate_file is None and ends and now - self._loaded > _TOLD_INTERVAL:
            return True
        return self._files() != self._shown.files

    def _tell_of_the_end(self) -> None:
        now = self._now()
        left = self._shown.expires_at - now
        if left < EXPIRY_WARNING and now - self._told > _TOLD_INTERVAL:
            self._told = now
            log.log(
                logging.WARNING if left > datetime.timedelta() else logging.ERROR,
                "the certificate of a listener ends; clients refuse it then; put a new one into "
                "its certificate_file, it is taken without a restart",
                extra=fields(
                    listener=self.name,
                    expires_at=f"{self._shown.expires_at:%Y-%m-%dT%H:%M:%SZ}",
                    days_left=left.days,
                ),
            )

    def _paths(self) -> list[Path]:
        tls = self._tls
        if tls.certificate_file is not None and tls.key_file is not None:
            paths = [tls.certificate_file, tls.key_file]
        else:
            paths = [self._cluster.ca_file]
            if self._cluster.ca_key_file is not None:
                paths.append(self._cluster.ca_key_file)
        return [*paths, tls.client_ca_file] if tls.client_ca_file is not None else paths

    def _files(self) -> tuple[object, ...]:
        """Changes when one of the files does; a file that is gone counts as a change too."""
        seen: list[object] = []
        for path in self._paths():
            try:
                status = path.stat()
            except OSError as error:
                seen.append(error.errno)
            else:
                seen.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(seen)

    def _load(self) -> _Shown:
        self._loaded = self._now()
        section = f"{self.name}.tls"
        files = self._files()  # before they are read: what changes meanwhile is read again
        if self._tls.certificate_file is not None and self._tls.key_file is not None:
            path = self._tls.certificate_file
            chain = read_certificates(path, "certificate_file", section)
            what = f"{section}.certificate_file {str(path)!r}"
            check_dates(chain[0], what, self._now())
            certificate_pem = path.read_bytes()
            key_pem = checked_key(chain[0], self._tls.key_file, what, section)
        else:
            issued = self._issue(section)
            certificate_pem, key_pem = issued
            chain = x509.load_pem_x509_certificates(certificate_pem)
        client_ca_pem = None
        if (client_ca := self._tls.client_ca_file) is not None:
            read_certificates(client_ca, "client_ca_file", section)
            client_ca_pem = client_ca.read_bytes()
        return _Shown(certificate_pem, client_ca_pem, chain[0].not_valid_after_utc, key_pem, files)

    def _issue(self, section: str) -> tuple[bytes, bytes]:
        if self._cluster.ca_key_file is None:
            raise ConfigError(
                f"[{section}] has no certificate_file, and this node has no "
                "cluster.tls.ca_key_file to sign one with",
                next_step="set certificate_file and key_file; `quorepo certificate issue` makes "
                "them on a node that has the CA's key",
            )
        authority = load_authority(self._cluster.ca_file, self._cluster.ca_key_file)
        issued = issue_listener_certificate(authority, self._hosts, self._now())
        return issued.certificate_pem, issued.key_pem

    def _new_context(self, shown: _Shown) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        with _as_file(shown.certificate_pem) as certificate, _as_file(shown.key_pem) as key:
            try:
                context.load_cert_chain(certificate, key)
            except ssl.SSLError as error:
                raise ConfigError(
                    f"[{self.name}.tls]: the certificate and its key are not usable: {error}"
                ) from error
        if shown.client_ca_pem is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=shown.client_ca_pem.decode("ascii", "replace"))
        return context


@contextlib.contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """A path for a library that reads keys from files only; nothing gets to a disk."""
    descriptor = os.memfd_create("quorepo-tls", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _grpc_configuration(shown: _Shown) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(shown.key_pem, shown.certificate_pem)], root_certificates=shown.client_ca_pem
    )


def listener_certificates(
    config: NodeConfig, metrics: EdgeMetrics
) -> dict[str, ListenerCertificate]:
    """The certificates of those of http, grpc and metrics that have TLS. Raises ConfigError."""
    advertise = config.advertise
    advertised = {
        "http": advertise.http_url.partition("://")[2].partition("/")[0],
        "grpc": advertise.grpc_address,
        "metrics": advertise.metrics_url.partition("://")[2].partition("/")[0],
    }
    certificates = {}
    for name in ("http", "grpc", "metrics"):
        tls: ListenerTls | None = getattr(config, name).tls
        if tls is None:
            continue
        hosts = [_host(advertised[name]), *tls.names, config.node.name, machine_host()]
        listened, _port = split_address(getattr(config.listen, name))
        # Whoever is on the machine calls the listener by where it listens.
        hosts += ["localhost", "127.0.0.1", "::1"] if is_wildcard(listened) else [listened]
        certificates[name] = ListenerCertificate(name, tls, config.cluster.tls, hosts, metrics)
    return certificates


def _host(location: str) -> str:
    """The host of HOST:PORT, HOST or [V6]:PORT."""
    if location.startswith("["):
        return location[1:].partition("]")[0]
    return location.partition(":")[0]


def trusted_by(tls: ListenerTls, cluster: TlsSection) -> bytes | None:
    """The CAs by which this node knows the same listener of another node; None: the system's."""
    if tls.ca_file is not None:
        return tls.ca_file.read_bytes()
    return cluster.ca_file.read_bytes() if tls.certificate_file is None else None

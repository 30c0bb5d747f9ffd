"""TLS of what clients talk to: who is heard, which certificate is shown, and when a new one."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import warnings
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from aiohttp import web
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from support.peer_certificates import authority, now

from quorepo.cluster.peer.authority import issue_listener_certificate
from quorepo.cluster.peer.certificates import Issued, issue_certificate
from quorepo.rpc.cluster_config import TlsSection
from quorepo.rpc.http.server import start_server
from quorepo.rpc.listener_config import ListenerTls
from quorepo.rpc.metrics import EdgeMetrics
from quorepo.rpc.tls import ListenerCertificate
from quorepo.storage.errors import ConfigError


class Listener:
    """A certificate of a listener, its files, and servers that show it."""

    def __init__(self, folder: Path, **tls: Any) -> None:
        self.folder = folder
        self.metrics = EdgeMetrics()
        for name, content in (
            ("ca.pem", authority().certificate_pem),
            ("ca.key", authority().key_pem),
        ):
            self.write(name, content)
        self.tls = ListenerTls(**{k: folder / v if "file" in k else v for k, v in tls.items()})
        self.cluster = TlsSection(
            ca_file=folder / "ca.pem",
            certificate_file=folder / "n1.pem",
            key_file=folder / "n1.key",
            ca_key_file=folder / "ca.key",
        )
        self.time = now()

    def write(self, name: str, content: bytes) -> None:
        path = self.folder / f"{name}.new"
        path.write_bytes(content)
        path.chmod(0o600)
        path.rename(self.folder / name)

    def write_pair(self, hosts: list[str], days: float = 30) -> Issued:
        lifetime = datetime.timedelta(days=days)
        issued = issue_listener_certificate(authority("public"), hosts, now(), lifetime)
        self.write("web.pem", issued.certificate_pem)
        self.write("web.key", issued.key_pem)
        return issued

    def certificate(self) -> ListenerCertificate:
        return ListenerCertificate(
            "http", self.tls, self.cluster, ["localhost", "127.0.0.1"], self.metrics,
            lambda: self.time,
        )  # fmt: skip

    def reloads(self, result: str) -> float:
        return float(self.metrics.certificate_reloads.labels("http", result)._value.get())


@pytest.fixture
async def http_port() -> int:
    server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port


def trusting(ca_pem: bytes) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=ca_pem.decode())


async def serve(certificate: ListenerCertificate, port: int) -> web.AppRunner:
    application = web.Application()

    async def hello(_request: web.Request) -> web.Response:
        return web.Response(text="hello")

    application.router.add_get("/", hello)
    return await start_server(application, f"127.0.0.1:{port}", certificate.ssl_context())


async def shown(port: int, context: ssl.SSLContext) -> x509.Certificate:
    """The certificate that a new connection meets."""
    _reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname="localhost"
    )
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(der)


async def test_the_clusters_ca_signs_for_what_is_advertised(tmp_path: Path, http_port: int) -> None:
    listener = Listener(tmp_path)
    runner = await serve(listener.certificate(), http_port)
    try:
        context = trusting(authority().certificate_pem)
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"https://localhost:{http_port}/", ssl=context) as response,
        ):
            assert await response.text() == "hello"
        certificate = await shown(http_port, context)
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert [use.dotted_string for use in uses] == ["1.3.6.1.5.5.7.3.1"], "serverAuth alone"
        with pytest.raises(ssl.SSLCertVerificationError):
            await shown(http_port, trusting(authority("another").certificate_pem))
    finally:
        await runner.cleanup()


async def test_old_versions_of_tls_are_refused(tmp_path: Path, http_port: int) -> None:
    runner = await serve(Listener(tmp_path).certificate(), http_port)
    try:
        context = trusting(authority().certificate_pem)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await shown(http_port, context)
    finally:
        await runner.cleanup()


async def test_a_changed_file_is_taken_without_a_restart(tmp_path: Path, http_port: int) -> None:
    listener = Listener(tmp_path, certificate_file="web.pem", key_file="web.key")
    first = listener.write_pair(["localhost"])
    certificate = listener.certificate()
    context = trusting(authority("public").certificate_pem)
    runner = await serve(certificate, http_port)
    grpc_server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health_aio.HealthServicer(), grpc_server)
    grpc_port = grpc_server.add_secure_port("127.0.0.1:0", certificate.grpc_credentials())
    await grpc_server.start()
    alpn = trusting(authority("public").certificate_pem)
    alpn.set_alpn_protocols(["h2"])
    try:
        for port, client in ((http_port, context), (grpc_port, alpn)):
            before = await shown(port, client)
            assert before == x509.load_pem_x509_certificate(first.certificate_pem)
        second = listener.write_pair(["localhost"], days=60)
        certificate.refresh()
        for port, client in ((http_port, context), (grpc_port, alpn)):
            after = await shown(port, client)
            assert after == x509.load_pem_x509_certificate(second.certificate_pem)
        assert listener.reloads("ok") == 1
        roots = grpc.ssl_channel_credentials(authority("public").certificate_pem)
        async with grpc.aio.secure_channel(f"localhost:{grpc_port}", roots) as channel:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    finally:
        await grpc_server.stop(None)
        await runner.cleanup()


async def test_what_is_not_usable_does_not_replace_what_is(
    tmp_path: Path, http_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    listener = Listener(tmp_path, certificate_file="web.pem", key_file="web.key")
    first = listener.write_pair(["localhost"])
    certificate = listener.certificate()
    runner = await serve(certificate, http_port)
    try:
        listener.write("web.key", authority().key_pem)  # the new certificate is not there yet
        for _ in range(3):
            certificate.refresh()
        context = trusting(authority("public").certificate_pem)
        assert await shown(http_port, context) == x509.load_pem_x509_certificate(
            first.certificate_pem
        )
        assert listener.reloads("failed") == 1
        assert [r.message for r in caplog.records].count(
            "the new certificate is not usable, the one before stays"
        ) == 1
        second = listener.write_pair(["localhost"])
        certificate.refresh()
        assert await shown(http_port, context) == x509.load_pem_x509_certificate(
            second.certificate_pem
        )
    finally:
        await runner.cleanup()


async def test_who_has_no_certificate_of_the_client_ca_is_not_heard(
    tmp_path: Path, http_port: int
) -> None:
    listener = Listener(tmp_path, client_ca_file="clients.pem")
    listener.write("clients.pem", authority("clients").certificate_pem)
    runner = await serve(listener.certificate(), http_port)
    known = issue_certificate(authority("clients"), "laptop", now())
    listener.write("laptop.pem", known.certificate_pem)
    listener.write("laptop.key", known.key_pem)

    async def get(context: ssl.SSLContext) -> str:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"https://localhost:{http_port}/", ssl=context) as response,
        ):
            return await response.text()

    try:
        context = trusting(authority().certificate_pem)
        with pytest.raises((aiohttp.ClientError, ssl.SSLError, ConnectionError)):
            await get(context)
        context.load_cert_chain(tmp_path / "laptop.pem", tmp_path / "laptop.key")
        assert await get(context) == "hello"
    finally:
        await runner.cleanup()


def test_a_certificate_of_the_ca_is_issued_again_in_time(tmp_path: Path) -> None:
    listener = Listener(tmp_path)
    certificate = listener.certificate()
    before = certificate._shown
    certificate.refresh()
    assert certificate._shown is before
    listener.time += datetime.timedelta(days=61)
    certificate.refresh()
    assert certificate._shown.expires_at > before.expires_at
    assert listener.reloads("ok") == 1
    again = certificate._shown
    certificate.refresh()
    assert certificate._shown is again


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda s: (s.folder / "web.pem").unlink(), "cannot read http.tls.certificate_file"),
        (lambda s: s.write("web.pem", b"x"), "holds no certificate in PEM"),
        (lambda s: s.write("web.key", authority().key_pem), "is not the key of http.tls"),
        (lambda s: (s.folder / "web.key").chmod(0o644), "is open to other users"),
        (lambda s: s.write_pair(["localhost"], days=-1), "expired at"),
    ],
)
def test_each_mistake_in_a_file_is_named(tmp_path: Path, spoil: Any, expected: str) -> None:
    listener = Listener(tmp_path, certificate_file="web.pem", key_file="web.key")
    listener.write_pair(["localhost"])
    spoil(listener)
    with pytest.raises(ConfigError, match=expected):
        listener.certificate()


def test_without_a_ca_key_the_next_command_is_named(tmp_path: Path) -> None:
    listener = Listener(tmp_path)
    listener.cluster = listener.cluster.model_copy(update={"ca_key_file": None})
    with pytest.raises(ConfigError, match="quorepo certificate issue"):
        listener.certificate()

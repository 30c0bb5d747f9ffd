"""What the client does when nodes are down, say nothing, or answer that nothing is certain."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import quorepo
from quorepo import aio, errors
from quorepo.rpc.client.attempts import Attempts
from quorepo.rpc.client.session import Session
from quorepo.rpc.grpc.errors import to_status
from quorepo.storage.errors import (
    LimitExceeded,
    NotFound,
    OutcomeUnknown,
    QuorepoError,
    StaleReference,
    Unavailable,
)
from quorepo.v1 import common_pb2, ref_pb2, ref_pb2_grpc, repository_pb2, repository_pb2_grpc

Answer = QuorepoError | grpc.StatusCode | None


class Node(repository_pb2_grpc.RepositoryServiceServicer, ref_pb2_grpc.RefServiceServicer):
    """Answers each call as `answers` says, one after the other; then well."""

    def __init__(self) -> None:
        self.address = ""
        self.answers: list[Answer] = []
        self.requests: list[Any] = []
        self.health = health.HealthServicer()
        self.stop: Callable[[], None] = lambda: None
        self.serves(True)

    def serves(self, ready: bool) -> None:
        states = health_pb2.HealthCheckResponse
        self.health.set("readiness", states.SERVING if ready else states.NOT_SERVING)

    def _answer(self, request: Any, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, grpc.StatusCode):
            context.abort(answer, "broken off")
        if isinstance(answer, QuorepoError):
            status = to_status(answer)
            context.set_trailing_metadata(
                (("grpc-status-details-bin", status.SerializeToString()),)
            )
            context.abort(grpc.StatusCode[answer.grpc_code], status.message)

    def UpdateRepository(
        self, request: repository_pb2.UpdateRepositoryRequest, context: grpc.ServicerContext
    ) -> repository_pb2.UpdateRepositoryResponse:
        self._answer(request, context)
        revision = common_pb2.Revision(incarnation=1, counter=7)
        return repository_pb2.UpdateRepositoryResponse(revision=revision)

    def GetRef(
        self, request: ref_pb2.GetRefRequest, context: grpc.ServicerContext
    ) -> ref_pb2.GetRefResponse:
        self._answer(request, context)
        return ref_pb2.GetRefResponse(ref=ref_pb2.Ref(name=request.name))


@contextlib.contextmanager
def running(count: int, credentials: grpc.ServerCredentials | None = None) -> Iterator[list[Node]]:
    with contextlib.ExitStack() as stack:
        nodes = []
        for _ in range(count):
            node = Node()  # type: ignore[abstract]
            pool = stack.enter_context(ThreadPoolExecutor(4))
            server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
            repository_pb2_grpc.add_RepositoryServiceServicer_to_server(node, server)
            ref_pb2_grpc.add_RefServiceServicer_to_server(node, server)
            health_pb2_grpc.add_HealthServicer_to_server(node.health, server)
            if credentials is None:
                port = server.add_insecure_port("127.0.0.1:0")
            else:
                port = server.add_secure_port("127.0.0.1:0", credentials)
            node.address = f"127.0.0.1:{port}"
            server.start()

            def stop(server: grpc.Server = server) -> None:
                server.stop(0).wait()

            node.stop = stop
            stack.callback(stop)
            nodes.append(node)
        yield nodes


def connected(nodes: list[Node], **options: Any) -> quorepo.Client:
    options.setdefault("timeout_s", 10.0)
    return quorepo.Client([node.address for node in nodes], token="t", **options)


def test_calls_go_round_and_leave_out_what_does_not_serve() -> None:
    with running(3) as nodes, connected(nodes) as client:
        nodes[1].serves(False)
        for _ in range(6):
            client.refs.get("a", "HEAD")
        assert [len(node.requests) for node in nodes][1] == 0
        assert all(len(node.requests) >= 2 for node in (nodes[0], nodes[2]))


def test_a_dead_node_is_skipped() -> None:
    with running(2) as nodes, connected(nodes) as client:
        nodes[0].stop()
        for _ in range(4):
            client.refs.get("a", "HEAD")
        assert len(nodes[1].requests) == 4


@pytest.mark.parametrize(
    "answer",
    [
        Unavailable("no leader"),
        OutcomeUnknown("it may have been done"),
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
    ],
)
def test_a_write_is_repeated_with_its_request_id(answer: Answer) -> None:
    with running(2) as nodes, connected(nodes) as client:
        for node in nodes:
            node.answers = [answer]
        assert str(client.repositories.update("a", description="b")) == "1.7"
        made = [request for node in nodes for request in node.requests]
        assert len(made) == 3
        assert len({request.request_id for request in made}) == 1
        assert made[0].request_id[14] == "7"  # the version of the UUID


def test_what_stays_unknown_is_raised_with_the_request_id() -> None:
    with running(1) as nodes, connected(nodes, timeout_s=1.0) as client:
        nodes[0].answers = [OutcomeUnknown("it may have been done")] * 50
        with pytest.raises(errors.OutcomeUnknown) as caught:
            client.repositories.update("a", description="b")
        assert caught.value.conclusion == "unknown"
        assert {request.request_id for request in nodes[0].requests} == {caught.value.request_id}


def test_a_doubt_is_not_settled_by_a_node_that_looks_at_nothing() -> None:
    with running(1) as nodes, connected(nodes, timeout_s=1.0) as client:
        nodes[0].answers = [grpc.StatusCode.INTERNAL, *[Unavailable("no leader")] * 50]
        with pytest.raises(errors.OutcomeUnknown):
            client.repositories.update("a", description="b")
        nodes[0].answers = [grpc.StatusCode.INTERNAL, LimitExceeded("busy", limit="api.busy")]
        with pytest.raises(errors.OutcomeUnknown):
            client.repositories.update("a", description="b")
        # It may have been deleted after it was changed.
        nodes[0].answers = [grpc.StatusCode.INTERNAL, NotFound("no repository")]
        with pytest.raises(errors.OutcomeUnknown):
            client.repositories.update("a", description="b")
        nodes[0].answers = [grpc.StatusCode.INTERNAL, StaleReference("moved")]
        with pytest.raises(errors.ReferenceMismatch):
            client.repositories.update("a", description="b")


def test_nobody_there_is_unavailable_and_nothing_was_changed() -> None:
    with running(2) as nodes, connected(nodes, timeout_s=0.5) as client:
        for node in nodes:
            node.stop()
        with pytest.raises(errors.Unavailable, match="nothing was changed"):
            client.repositories.update("a", description="b")
        with pytest.raises(errors.Unavailable, match="nothing was changed"):
            client.refs.get("a", "HEAD")


def test_a_local_read_is_answered_by_a_node_without_a_leader() -> None:
    with running(1) as nodes, connected(nodes, timeout_s=0.5) as client:
        nodes[0].serves(False)
        assert client.refs.get("a", "HEAD", consistency="local").name == b"HEAD"
        with pytest.raises(errors.Unavailable):
            client.refs.get("a", "HEAD", consistency="linearizable")


def test_a_read_after_an_own_write_asks_for_its_revision() -> None:
    with running(1) as nodes, connected(nodes) as client:
        client.refs.get("b", "HEAD")
        assert nodes[0].requests[-1].consistency.WhichOneof("level") == "linearizable"
        client.repositories.update("a", description="b")
        client.refs.get("a", "HEAD")
        assert nodes[0].requests[-1].consistency.at_least.counter == 7
        client.refs.get("a", "HEAD", consistency="local")
        assert nodes[0].requests[-1].consistency.WhichOneof("level") == "local"


async def test_the_asynchronous_client_fails_over_too() -> None:
    with running(2) as nodes:
        async with aio.Client([node.address for node in nodes], token="t") as client:
            nodes[0].answers = [Unavailable("no leader")]
            nodes[1].answers = [grpc.StatusCode.UNAVAILABLE]
            assert (await client.repositories.update("a", description="b")).counter == 7
            nodes[0].stop()
            for _ in range(3):
                await client.refs.get("a", "HEAD")


def test_a_path_whose_repository_was_replaced_is_read_linearizably_ever_after() -> None:
    session = Session("session")
    session.saw("a", common_pb2.Revision(incarnation=1, counter=50))
    session.saw("a", common_pb2.Revision(incarnation=1, counter=49))
    assert session.wanted("a", None).at_least.counter == 50
    session.moved("a")
    session.saw("a", common_pb2.Revision(incarnation=1, counter=1))
    assert session.wanted("a", None).WhichOneof("level") == "linearizable"


def test_a_refusal_is_not_repeated() -> None:
    attempts = Attempts(10.0, 1.0, 1, "id")
    refusal = errors.NotFound("no", reason="NOT_FOUND", code="NOT_FOUND")
    with pytest.raises(errors.NotFound):
        attempts.failed(refusal)


def self_signed(name: str) -> tuple[bytes, bytes]:
    """Certificate and key of 127.0.0.1, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def test_tls_with_the_right_certificates_only(tmp_path: Path) -> None:
    certificate, key = self_signed("right")
    (tmp_path / "ca.pem").write_bytes(certificate)
    (tmp_path / "other.pem").write_bytes(self_signed("other")[0])
    with running(1, grpc.ssl_server_credentials([(key, certificate)])) as nodes:
        with connected(nodes, ca_file=tmp_path / "ca.pem") as client:
            assert client.refs.get("a", "HEAD").name == b"HEAD"
        with (
            connected(nodes, ca_file=tmp_path / "other.pem", timeout_s=0.5) as stranger,
            pytest.raises(errors.Unavailable),
        ):
            stranger.refs.get("a", "HEAD")
        assert len(nodes[0].requests) == 1

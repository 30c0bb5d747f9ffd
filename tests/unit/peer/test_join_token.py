"""Join tokens: what is inside, what TLS lets them do, and what becomes of damaged ones."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from grpc import aio
from support.peer_certificates import authority, credentials_of, now
from support.peer_nodes import KEEPALIVE, METHODS, SERVICE, Lab, ended_with

from quorepo.cluster.peer.authority import (
    authority_of_secret,
    fingerprint,
    issue_listener_certificate,
    make_bootstrap_secret,
    read_bootstrap_secret,
)
from quorepo.cluster.peer.certificates import Credentials, issue_certificate, load_credentials
from quorepo.cluster.peer.clients import PeerAddress, open_channel
from quorepo.cluster.peer.join_token import MintedToken, make_join_token, read_join_token
from quorepo.internal.v1 import peer_pb2, peer_pb2_grpc
from quorepo.storage.errors import ConfigError

HOUR = datetime.timedelta(hours=1)


def private(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(0o600)
    return path


@pytest.fixture
def minted() -> MintedToken:
    return make_join_token(authority(""), now(), HOUR)


@pytest.fixture
def token(tmp_path: Path, minted: MintedToken) -> Credentials:
    return read_join_token(private(tmp_path / "token", minted.text + "\n"), now())


@pytest_asyncio.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    await lab.close()


async def test_a_token_with_garbage_is_told_so(lab: Lab, token: Credentials) -> None:
    node = await lab.node("n1")
    async with open_channel(member_of(node.address), token, KEEPALIVE) as channel:
        call: Any = channel.stream_stream(f"/{SERVICE.full_name}/Join")()
        await call.write(b"\xff\xff")
        await call.done_writing()
        assert (await call.code()).name == "INVALID_ARGUMENT"


def member_of(lab_address: str) -> PeerAddress:
    return PeerAddress("", lab_address)


async def test_a_token_reaches_join_and_the_directory_knows_it_by_its_digest(
    lab: Lab, token: Credentials, minted: MintedToken
) -> None:
    node = await lab.node("n1")
    async with open_channel(member_of(node.address), token, KEEPALIVE) as channel:
        call: Any = peer_pb2_grpc.PeerStub(channel).Join(peer_pb2.JoinRequest(node="n2"))
        assert (await call).cluster_id == minted.digest.hex()
    assert minted.text not in repr(minted)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"Join"}))
async def test_a_token_reaches_nothing_else(lab: Lab, token: Credentials, method: str) -> None:
    node = await lab.node("n1")
    async with open_channel(member_of(node.address), token, KEEPALIVE) as channel:
        call: Any = channel.stream_stream(f"/{SERVICE.full_name}/{method}")
        assert (await ended_with(call, b""))[0] == "PERMISSION_DENIED"


async def test_a_node_does_not_join_with_its_certificate(lab: Lab) -> None:
    node = await lab.node("n1")
    async with open_channel(node.peer, credentials_of("n2"), KEEPALIVE) as channel:
        call: Any = peer_pb2_grpc.PeerStub(channel).Join(peer_pb2.JoinRequest(node="n3"))
        with pytest.raises(aio.AioRpcError, match="does not join with a token") as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_newcomer_believes_no_other_cluster(
    lab: Lab, tmp_path: Path, minted: MintedToken
) -> None:
    other = credentials_of("n1", signed_by="other cluster", trusts="other cluster")
    node = await lab.node("n1", credentials=other)
    token = read_join_token(private(tmp_path / "token", minted.text), now())
    async with open_channel(member_of(node.address), token, KEEPALIVE) as channel:
        call: Any = peer_pb2_grpc.PeerStub(channel).Join(peer_pb2.JoinRequest(), timeout=5)
        with pytest.raises(aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_mistakes_with_a_token_are_told(tmp_path: Path, minted: MintedToken) -> None:
    path = tmp_path / "token"
    mistakes: list[tuple[str | bytes, str]] = [
        ("", "holds no join token"),
        ("quorepo-join-1:", "holds no join token"),
        (minted.text[:-40], "or a damaged one"),
        (minted.text[:60] + "AAAA" + minted.text[64:], "or a damaged one"),
        (b"\xff\xfe", "holds no join token"),
    ]
    for content, expected in mistakes:
        with pytest.raises(ConfigError, match=expected) as caught:
            read_join_token(private(path, content), now())
        assert "quorepo node token" in str(caught.value)
        assert minted.text[20:60] not in str(caught.value)
    private(path, minted.text).chmod(0o644)
    with pytest.raises(ConfigError, match="is open to other users"):
        read_join_token(path, now())
    with pytest.raises(ConfigError, match="expired at"):
        read_join_token(private(path, minted.text), now() + 2 * HOUR)


# ---- the shared secret


def test_one_secret_makes_one_ca_everywhere(tmp_path: Path) -> None:
    """What one node signed with the derived CA, another that derived it by itself accepts."""
    path = private(tmp_path / "secret", make_bootstrap_secret())
    secret = read_bootstrap_secret(path)
    here = authority_of_secret(secret, now())
    there = authority_of_secret(secret, now() + HOUR)
    assert here.key_pem == there.key_pem
    issued = issue_certificate(here, "n1", now())
    files = [
        private(tmp_path / name, content)
        for name, content in (
            ("ca.pem", there.certificate_pem),
            ("n1.pem", issued.certificate_pem),
            ("n1.key", issued.key_pem),
        )
    ]
    later = now() + HOUR
    assert load_credentials("n1", files[0], files[1], files[2], later).node == "n1"
    other = authority_of_secret(hashlib.sha256(b"another").digest(), now())
    assert other.key_pem != here.key_pem
    assert fingerprint(other.certificate_pem) != fingerprint(here.certificate_pem)


@pytest.mark.parametrize(
    "content", ["", "password", "quorepo-bootstrap-1:short", "quorepo-bootstrap-1:" + "A" * 44]
)
def test_a_secret_that_could_be_guessed_is_refused(tmp_path: Path, content: str) -> None:
    path = private(tmp_path / "secret", content)
    with pytest.raises(ConfigError, match="holds no bootstrap secret") as caught:
        read_bootstrap_secret(path)
    assert "quorepo init --bootstrap-expect" in str(caught.value)
    assert "password" not in str(caught.value)


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = private(tmp_path / "secret", make_bootstrap_secret())
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_bootstrap_secret(path)


def test_a_listener_is_never_certified_as_a_node() -> None:
    for name in ("n1.node.quorepo", "member.quorepo", "JOINING.quorepo."):
        with pytest.raises(ValueError, match="the cluster's own nodes"):
            issue_listener_certificate(authority(""), [name], now())
    issued = issue_listener_certificate(authority(""), ["git.example", "10.0.0.1"], now())
    certificate = x509.load_pem_x509_certificate(issued.certificate_pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["git.example"]
    assert certificate.public_bytes(serialization.Encoding.PEM) == issued.certificate_pem

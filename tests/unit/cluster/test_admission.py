"""What a member asks of a node that wants to join, and what each refusal says."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from prometheus_client import CollectorRegistry
from support.peer_certificates import authority, now

from quorepo.cluster.addresses import living_twin, move_replica
from quorepo.cluster.admission import Admission, AuthorityFiles
from quorepo.cluster.metrics import ClusterMetrics
from quorepo.cluster.peer.certificates import load_credentials
from quorepo.cluster.peer.join_token import read_join_token
from quorepo.cluster.proposals import Answer
from quorepo.cluster.raft.interface import Outcome
from quorepo.cluster.state.commands import rejection
from quorepo.internal.v1 import core_pb2, log_pb2, peer_pb2
from quorepo.storage.errors import (
    AlreadyExists,
    InvalidArgument,
    PermissionDenied,
    QuorepoError,
    Rejected,
    Unavailable,
)
from quorepo.storage.layout import GroupLayout

ADDRESS = "n1:7423"


class Driver:
    """The directory, as far as a member asks it."""

    def __init__(self) -> None:
        self.commands: list[log_pb2.Command] = []
        self.outcome = Outcome.APPLIED
        self.result = log_pb2.Result(node=log_pb2.NodeResult(name="n4"))

    async def propose(self, group: int, command: log_pb2.Command, timeout_s: float) -> Answer:
        assert group == 0
        self.commands.append(command)
        return Answer(self.outcome, self.result, reason="no leader")


class Member:
    def __init__(self, folder: Path, *, with_key: bool = True) -> None:
        self.driver = Driver()
        self.files = AuthorityFiles(
            folder / "ca.pem", folder / "ca.key" if with_key else None, folder / "tokens"
        )
        for name, content in (
            ("ca.pem", authority("").certificate_pem),
            ("ca.key", authority("").key_pem),
            ("tokens", b"tokens of the users"),
        ):
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o600)
        layout = GroupLayout(folder / "data", 0)
        layout.create()
        replica = log_pb2.Replica(replica_id="n1@d1", node="n1", peer_address=ADDRESS)
        self.admission = Admission(
            self.files,
            self.driver,  # type: ignore[arg-type]
            lambda: [log_pb2.Configuration(replicas=[replica])],
            layout,
            ClusterMetrics(CollectorRegistry()),
            node="n1",
            cluster_id="c1",
        )


@pytest.fixture
def member(tmp_path: Path) -> Member:
    return Member(tmp_path)


def signing_request(key: Any = None) -> bytes:
    key = key or ec.generate_private_key(ec.SECP256R1())
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.DER)


def request(**changes: Any) -> peer_pb2.JoinRequest:
    values = {"node": "n4", "replica_id": "n4@d1", "signing_request": signing_request()}
    return peer_pb2.JoinRequest(**{**values, **changes}, peer_address="n4:7423")


async def test_a_token_is_made_recorded_and_not_kept(member: Member, tmp_path: Path) -> None:
    made = await member.admission.create_token(
        core_pb2.CoreJoinTokenRequest(node="n4", actor="alice", lifetime_ms=60_000)
    )
    path = tmp_path / "token"
    path.write_text(made.token)
    path.chmod(0o600)
    assert read_join_token(path, now()).node == ""
    (command,) = member.driver.commands
    assert command.actor == "alice"
    assert command.add_join_token.node == "n4"
    assert len(command.add_join_token.token_digest) == 32
    assert list(made.peer_addresses) == [ADDRESS]
    assert made.token.encode() not in command.SerializeToString()


async def test_a_newcomer_gets_a_certificate_for_its_own_key(
    member: Member, tmp_path: Path
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    answer = await member.admission.join(request(signing_request=signing_request(key)), b"t" * 32)
    (command,) = member.driver.commands
    assert command.use_join_token.replica_id == "n4@d1"
    assert not command.use_join_token.name_is_taken
    assert answer.user_tokens == b"tokens of the users"
    assert answer.cluster_id == "c1"
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    files = []
    for name, content in (
        ("n4-ca.pem", answer.ca_pem),
        ("n4.pem", answer.certificate_pem),
        ("n4.key", pem),
    ):
        files.append(tmp_path / name)
        files[-1].write_bytes(content)
        files[-1].chmod(0o600)
    assert load_credentials("n4", files[0], files[1], files[2], now()).node == "n4"


REFUSALS: list[tuple[log_pb2.RejectionReason.ValueType, type[QuorepoError], str]] = [
    (log_pb2.REJECTION_REASON_JOIN_TOKEN_USED, PermissionDenied, "quorepo node token"),
    (log_pb2.REJECTION_REASON_JOIN_TOKEN_EXPIRED, PermissionDenied, "quorepo node token"),
    (log_pb2.REJECTION_REASON_JOIN_TOKEN_UNKNOWN, PermissionDenied, "quorepo node token"),
    (
        log_pb2.REJECTION_REASON_JOIN_TOKEN_NAME_TAKEN,
        AlreadyExists,
        "quorepo node token --node n4",
    ),
]


@pytest.mark.parametrize(("reason", "kind", "next_step"), REFUSALS)
async def test_what_the_directory_refuses_is_not_signed(
    member: Member,
    reason: log_pb2.RejectionReason.ValueType,
    kind: type[QuorepoError],
    next_step: str,
) -> None:
    member.driver.result = rejection(reason, "why not")
    with pytest.raises(kind, match="why not") as caught:
        await member.admission.join(request(), b"t" * 32)
    assert next_step in caught.value.next_step


async def test_nothing_is_signed_while_the_directory_does_not_answer(member: Member) -> None:
    member.driver.outcome = Outcome.UNKNOWN
    with pytest.raises(Unavailable, match="nobody was let in"):
        await member.admission.join(request(), b"t" * 32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: {"node": "N4"}, "is no node name"),
        (lambda: {"node": ""}, "is no node name"),
        (lambda: {"replica_id": "n5@d1"}, "is no replica of node"),
        (lambda: {"replica_id": "n4@" + "d" * 80}, "is no replica of node"),
        (lambda: {"signing_request": b"garbage"}, "does not parse"),
        (
            lambda: {"signing_request": signing_request(ec.generate_private_key(ec.SECP384R1()))},
            "is an ECDSA key on P-256",
        ),
        (
            lambda: {"signing_request": signing_request(ed25519.Ed25519PrivateKey.generate())},
            "is an ECDSA key on P-256",
        ),
        (lambda: {"signing_request": broken_signature()}, "not signed by its own key"),
    ],
)
async def test_a_request_that_contradicts_itself_uses_no_token(
    member: Member, change: Callable[[], dict[str, Any]], words: str
) -> None:
    with pytest.raises(InvalidArgument, match=words):
        await member.admission.join(request(**change()), b"t" * 32)
    assert not member.driver.commands


def broken_signature() -> bytes:
    request = bytearray(signing_request())
    request[-1] ^= 1
    return bytes(request)


async def test_a_taken_name_is_told_to_the_directory(member: Member) -> None:
    await member.admission.join(request(node="n1", replica_id="n1@d2"), b"t" * 32)
    assert member.driver.commands[0].use_join_token.name_is_taken


async def test_a_member_without_the_ca_key_says_who_can_help(tmp_path: Path) -> None:
    member = Member(tmp_path, with_key=False)
    with pytest.raises(Rejected, match=r"has no cluster\.tls\.ca_key_file") as caught:
        await member.admission.create_token(core_pb2.CoreJoinTokenRequest())
    assert "quorepo certificate issue" in caught.value.next_step
    with pytest.raises(Unavailable):  # the newcomer asks another one
        await member.admission.join(request(), b"t" * 32)
    assert not member.driver.commands


@pytest.mark.parametrize(
    ("node", "lifetime", "words"),
    [
        ("no such name", datetime.timedelta(hours=1), "is no node name"),
        ("n4", datetime.timedelta(days=8), "7 days at most"),
    ],
)
async def test_a_token_that_cannot_be_is_not_made(
    member: Member, node: str, lifetime: datetime.timedelta, words: str
) -> None:
    milliseconds = int(lifetime.total_seconds() * 1000)
    with pytest.raises(InvalidArgument, match=words):
        await member.admission.create_token(
            core_pb2.CoreJoinTokenRequest(node=node, lifetime_ms=milliseconds)
        )
    assert not member.driver.commands


# ---- coming back


class Host:
    """A group as its leader, or another replica, sees it."""

    def __init__(self, role: str, *replicas: Any) -> None:
        self.role, self.leader, self.replicas = role, "n1@d1", replicas
        self.configuration = log_pb2.Configuration(
            replicas=[log_pb2.Replica(replica_id="n2@d1", node="n2", peer_address="old:1")]
        )
        self.changes: list[log_pb2.Configuration] = []

    def status(self, group: int) -> Any:
        return self


class Replica:
    def __init__(self, replica_id: str, *, connected: bool) -> None:
        self.replica_id, self.node = replica_id, replica_id.partition("@")[0]
        self.connected = connected


def test_a_node_that_runs_is_not_replaced_by_a_machine_with_its_certificate() -> None:
    host: Any = Host("leader", Replica("n2@d1", connected=True))
    assert "runs already, as replica 'n2@d1'" in living_twin(host, [0], "n2", "n2@d2")
    assert not living_twin(host, [0], "n2", "n2@d1")
    host = Host("leader", Replica("n2@d1", connected=False))
    assert not living_twin(host, [0], "n2", "n2@d2")


async def test_only_the_leader_changes_an_address() -> None:
    host: Any = Host("follower")
    assert await move_replica(host, [0], "n2@d1", "new:1") == "group 0 is led by n1@d1"
    assert not await move_replica(host, [0], "n2@d1", "old:1")
    assert not await move_replica(host, [0], "n9@d1", "new:1")

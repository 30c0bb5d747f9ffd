"""What a member does for nodes that want to join: tokens, certificates, who was let in.

Owns the order: the directory records the use of a token first, then a certificate is signed, so no
token lets two nodes in, whichever member is asked and whoever dies. Must not know how a newcomer
becomes a replica (`membership.py`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import hashlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from quorepo.cluster.metrics import ClusterMetrics
from quorepo.cluster.peer.authority import fingerprint, load_authority
from quorepo.cluster.peer.certificates import Issued, sign_node
from quorepo.cluster.peer.join_token import make_join_token
from quorepo.cluster.peer.roster import node_of_replica
from quorepo.cluster.proposals import ProposalDriver
from quorepo.cluster.raft.interface import Outcome
from quorepo.cluster.state.commands import COMMAND_VERSION, DIRECTORY_GROUP
from quorepo.cluster.state.reader import StateReader
from quorepo.internal.v1 import core_pb2, log_pb2, peer_pb2
from quorepo.storage.errors import (
    AlreadyExists,
    InvalidArgument,
    PermissionDenied,
    Rejected,
    Unavailable,
)
from quorepo.storage.failpoints import failpoint
from quorepo.storage.layout import GroupLayout
from quorepo.storage.logs import fields

__all__ = ["LIFETIME_MAX", "Admission", "AuthorityFiles"]

log = logging.getLogger(__name__)

LIFETIME_MAX = datetime.timedelta(days=7)
_LIFETIME_DEFAULT = datetime.timedelta(hours=1)
_NODE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
_TIMEOUT_S = 10.0
_ANOTHER = "make a new one: quorepo node token"


@dataclasses.dataclass(frozen=True, slots=True)
class AuthorityFiles:
    """Where a member finds what it needs to let others in."""

    ca: Path
    ca_key: Path | None
    user_tokens: Path


class Admission:
    """Of one member; runs in the core's event loop."""

    def __init__(
        self,
        files: AuthorityFiles,
        driver: ProposalDriver,
        configurations: Callable[[], Iterable[log_pb2.Configuration]],
        directory: GroupLayout,
        metrics: ClusterMetrics,
        *,
        node: str,
        cluster_id: str,
    ) -> None:
        """`configurations()` gives one per group of this node."""
        self._files = files
        self._driver = driver
        self._configurations = configurations
        self._reader = StateReader(directory)
        self._outcomes = metrics.join_tokens
        self._node = node
        self._cluster_id = cluster_id

    def close(self) -> None:
        """Closes the state that it reads."""
        self._reader.close()

    async def admitted(self, replica_id: str) -> bool:
        """Did the replica come with a token, as far as this node has applied the directory?"""
        return await asyncio.to_thread(self._reader.was_admitted, replica_id)

    # ---- tokens

    async def create_token(
        self, request: core_pb2.CoreJoinTokenRequest
    ) -> core_pb2.CoreJoinTokenResponse:
        """Raises Rejected, InvalidArgument, Unavailable: there is no token then."""
        lifetime = datetime.timedelta(milliseconds=request.lifetime_ms) or _LIFETIME_DEFAULT
        if lifetime > LIFETIME_MAX:
            raise InvalidArgument(f"a join token lives {LIFETIME_MAX.days} days at most")
        if request.node and not _NODE_NAME.fullmatch(request.node):
            raise InvalidArgument(f"{request.node!r} is no node name")
        authority = self._authority()
        now = datetime.datetime.now(datetime.UTC)
        token = make_join_token(authority, now, lifetime)
        expires_ms = int((now + lifetime).timestamp() * 1000)
        command = self._command(request.actor)
        command.add_join_token.token_digest = token.digest
        command.add_join_token.node = request.node
        command.add_join_token.expires_ms = expires_ms
        await self._propose(command)
        self._outcomes.labels("created").inc()
        log.info(
            "join token created",
            extra=fields(
                token=token.digest.hex()[:16], node=request.node or "any", actor=request.actor
            ),
        )
        replicas = {r.node: r.peer_address for c in self._configurations() for r in c.replicas}
        return core_pb2.CoreJoinTokenResponse(
            token=token.text,
            expires_ms=expires_ms,
            ca_fingerprint=fingerprint(authority.certificate_pem),
            peer_addresses=[address for _node, address in sorted(replicas.items())],
        )

    # ---- joining

    async def join(
        self, request: peer_pb2.JoinRequest, token_digest: bytes
    ) -> peer_pb2.JoinResponse:
        """Uses the token and signs.

        Raises:
            InvalidArgument: the request contradicts itself.
            PermissionDenied: the token is unknown, used, over, or for another name.
            AlreadyExists: the name is a member's.
            Unavailable: ask again, or another member.
        """
        key = _checked_request(request)
        authority = self._authority_or_unavailable()
        digest = hashlib.sha256(
            key.public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        ).digest()
        command = self._command(f"node:{request.node}")
        command.use_join_token.token_digest = token_digest
        command.use_join_token.node = request.node
        command.use_join_token.replica_id = request.replica_id
        command.use_join_token.key_digest = digest
        command.use_join_token.name_is_taken = self._is_taken(request)
        failpoint("admission.before_use")
        try:
            await self._propose(command)
        except (PermissionDenied, AlreadyExists) as error:
            self._outcomes.labels("refused").inc()
            log.warning(
                "join refused",
                extra=fields(
                    node=request.node, token=token_digest.hex()[:16], reason=error.message
                ),
            )
            raise
        failpoint("admission.after_use")
        certificate = sign_node(authority, request.node, key, datetime.datetime.now(datetime.UTC))
        self._outcomes.labels("used").inc()
        log.info(
            "node admitted",
            extra=fields(
                node=request.node,
                replica=request.replica_id,
                address=request.peer_address,
                token=token_digest.hex()[:16],
            ),
        )
        return peer_pb2.JoinResponse(
            certificate_pem=certificate,
            ca_pem=self._files.ca.read_bytes(),
            ca_key_pem=authority.key_pem,
            cluster_id=self._cluster_id,
            user_tokens=self._user_tokens(),
        )

    def _is_taken(self, request: peer_pb2.JoinRequest) -> bool:
        replicas = [r for c in self._configurations() for r in c.replicas]
        return any(r.node == request.node and r.replica_id != request.replica_id for r in replicas)

    def _user_tokens(self) -> bytes:
        try:
            return self._files.user_tokens.read_bytes()
        except OSError as error:  # the newcomer needs another way then; its start says so
            log.warning("cannot hand on the users' tokens", extra=fields(error=str(error)))
            return b""

    def _authority(self) -> Issued:
        if self._files.ca_key is None:
            raise Rejected(
                f"node {self._node!r} has no cluster.tls.ca_key_file, so it cannot sign for a node "
                "that joins; nothing was changed",
                next_step="ask a node that has it (--endpoint), or sign where the key is kept: "
                "quorepo certificate issue --node NAME",
            )
        return load_authority(self._files.ca, self._files.ca_key)

    def _authority_or_unavailable(self) -> Issued:
        try:
            return self._authority()
        except Rejected as error:
            raise Unavailable(error.message, next_step=error.next_step) from error

    # ---- the directory

    def _command(self, actor: str) -> log_pb2.Command:
        return log_pb2.Command(
            version=COMMAND_VERSION,
            request_id=secrets.token_bytes(16),
            first_seen_ms=time.time_ns() // 1_000_000,
            actor=actor,
        )

    async def _propose(self, command: log_pb2.Command) -> None:
        answer = await self._driver.propose(DIRECTORY_GROUP, command, _TIMEOUT_S)
        if answer.outcome is not Outcome.APPLIED or answer.result is None:
            raise Unavailable(
                f"the directory did not answer ({answer.reason}); nobody was let in",
                next_step="try again",
            )
        if answer.result.HasField("rejection"):
            rejection = answer.result.rejection
            if rejection.reason == log_pb2.REJECTION_REASON_JOIN_TOKEN_NAME_TAKEN:
                raise AlreadyExists(
                    rejection.message,
                    next_step="give the newcomer another node.name; or, to bring that node back on "
                    f"a new disk: quorepo node token --node {command.use_join_token.node}",
                )
            raise PermissionDenied(rejection.message, next_step=_ANOTHER)


def _checked_request(request: peer_pb2.JoinRequest) -> ec.EllipticCurvePublicKey:
    """The newcomer's public key. Raises InvalidArgument."""
    if not _NODE_NAME.fullmatch(request.node):
        raise InvalidArgument(f"{request.node!r} is no node name")
    if node_of_replica(request.replica_id) != request.node or len(request.replica_id) > 64:
        raise InvalidArgument(f"{request.replica_id!r} is no replica of node {request.node!r}")
    try:
        signing = x509.load_der_x509_csr(request.signing_request)
        key = signing.public_key()
        if not signing.is_signature_valid:
            raise InvalidArgument("the signing request is not signed by its own key")
    except (ValueError, TypeError, InvalidSignature) as error:
        raise InvalidArgument(f"the signing request does not parse: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidArgument("the key of a node is an ECDSA key on P-256")
    return key

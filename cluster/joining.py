"""A node with a join token asks the members for its certificate, until one gives it.

Owns what the newcomer does before it is anybody: its key stays on its disk, the token's CA is the
only one it believes. It may die at any step and start again: the token is used by this replica and
this key, so asking again is the same use. Must not know what members decide by (`admission.py`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from grpc import aio

from quorepo.cluster.enrolment import TlsFiles, own_key
from quorepo.cluster.identity import NodeIdentity
from quorepo.cluster.peer.certificates import Credentials, Issued
from quorepo.cluster.peer.clients import Keepalive, PeerAddress, open_channel, tls_problem
from quorepo.cluster.peer.join_token import read_join_token
from quorepo.cluster.raft.durable import DirectoryLock
from quorepo.internal.v1 import peer_pb2, peer_pb2_grpc
from quorepo.storage.errors import ConfigError, Unavailable
from quorepo.storage.failpoints import failpoint
from quorepo.storage.layout import write_durably
from quorepo.storage.logs import fields

__all__ = ["JoinPlan", "enrol_with_token"]

log = logging.getLogger(__name__)

_CALL_TIMEOUT_S = 15.0
_ASK_INTERVAL_S = 1.0
_LOCK_WAIT_S = 5.0
# Answers that asking again will not change.
_FINAL = (
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.ALREADY_EXISTS,
)


@dataclasses.dataclass(frozen=True, slots=True)
class JoinPlan:
    """What a newcomer's configuration says."""

    files: TlsFiles
    token_file: Path
    data_dir: Path
    peer_address: str  # of this node, as others reach it
    contacts: Sequence[str]  # HOST:PORT of members
    user_tokens: Path  # written when it is not there


async def enrol_with_token(plan: JoinPlan) -> None:
    """Returns once the certificate is there. Waits for a member for ever.

    Raises:
        ConfigError: the token is of no use, or a member refused it; nothing was changed there.
    """
    token = read_join_token(plan.token_file, datetime.datetime.now(datetime.UTC))
    plan.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with plan.files.locked():
        try:
            lock = DirectoryLock(plan.data_dir / "lock", _LOCK_WAIT_S)
        except Unavailable as error:
            raise ConfigError(
                f"{error}; nothing was changed", next_step="stop the node that runs there"
            ) from error
        try:
            await _enrol(plan, token)
        finally:
            lock.release()


async def _enrol(plan: JoinPlan, token: Credentials) -> None:
    identity = NodeIdentity.open(plan.data_dir, plan.files.node)
    key, pem = own_key(plan.files)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, plan.files.node)])
    request = (
        x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    )
    message = peer_pb2.JoinRequest(
        node=plan.files.node,
        replica_id=identity.replica_id,
        signing_request=request.public_bytes(serialization.Encoding.DER),
        peer_address=plan.peer_address,
    )
    failpoint("joining.before_asking")
    answer = await _ask_until_answered(plan, token, message)
    failpoint("joining.after_answer")
    if answer.user_tokens and not plan.user_tokens.exists():
        plan.user_tokens.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(plan.user_tokens, answer.user_tokens)
    authority = Issued(answer.ca_pem, answer.ca_key_pem)
    plan.files.write(authority, pem, answer.certificate_pem)
    log.info("admitted to the cluster", extra=fields(cluster=answer.cluster_id))


async def _ask_until_answered(
    plan: JoinPlan, token: Credentials, message: peer_pb2.JoinRequest
) -> peer_pb2.JoinResponse:
    told = ""
    while True:
        problems = []
        for address in plan.contacts:
            peer = PeerAddress("", address)
            # A new channel each time: names are looked up again.
            async with open_channel(peer, token, Keepalive()) as channel:
                try:
                    call: Any = peer_pb2_grpc.PeerStub(channel).Join(
                        message, timeout=_CALL_TIMEOUT_S
                    )
                    answer: peer_pb2.JoinResponse = await call
                    return answer
                except aio.AioRpcError as error:
                    details = error.details() or ""
                    if error.code() in _FINAL:
                        raise ConfigError(f"{address} refused: {details}") from error
                    problems.append(f"{address}: {tls_problem(peer, details) or details}")
        if "; ".join(problems) != told:
            told = "; ".join(problems)
            log.info("no member has answered yet", extra=fields(problems=told[:500]))
        await asyncio.sleep(_ASK_INTERVAL_S)

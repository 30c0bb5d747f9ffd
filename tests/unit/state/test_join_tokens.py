"""A join token lets one replica in, once, before its end; the machine says why not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.state_log import Machine, result_of

from quorepo.internal.v1 import log_pb2

TOKEN = b"t" * 32
UNKNOWN = log_pb2.REJECTION_REASON_JOIN_TOKEN_UNKNOWN
USED = log_pb2.REJECTION_REASON_JOIN_TOKEN_USED
EXPIRED = log_pb2.REJECTION_REASON_JOIN_TOKEN_EXPIRED
NODE = log_pb2.REJECTION_REASON_JOIN_TOKEN_NODE
TAKEN = log_pb2.REJECTION_REASON_JOIN_TOKEN_NAME_TAKEN
FAR = 1 << 50


@pytest.fixture
def directory() -> Iterator[Machine]:
    with Machine(group=0) as machine:
        yield machine


def added(node: str = "", expires_ms: int = FAR) -> log_pb2.AddJoinToken:
    return log_pb2.AddJoinToken(token_digest=TOKEN, node=node, expires_ms=expires_ms)


def use(
    replica: str = "n4@d1", *, key: bytes = b"k" * 32, taken: bool = False, token: bytes = TOKEN
) -> log_pb2.UseJoinToken:
    return log_pb2.UseJoinToken(
        token_digest=token,
        node=replica.partition("@")[0],
        replica_id=replica,
        key_digest=key,
        name_is_taken=taken,
    )


def test_a_token_is_used_once_and_a_repeat_is_the_same_use(directory: Machine) -> None:
    directory.apply(added())
    for _ in range(2):  # the answer was lost, the newcomer asks again
        assert result_of(directory.apply(use())).node.name == "n4"
    assert directory.rejection(use("n5@d1")) == USED
    assert directory.rejection(use("n4@d2")) == USED
    assert directory.rejection(use(key=b"x" * 32)) == USED
    directory.apply(added())  # a repeat does not make it new
    assert directory.rejection(use("n5@d1")) == USED


def test_what_is_not_known_or_over_lets_nobody_in(directory: Machine) -> None:
    assert directory.rejection(use()) == UNKNOWN
    directory.apply(added(expires_ms=1))
    assert directory.rejection(use()) == EXPIRED
    assert directory.rejection(log_pb2.AddJoinToken(token_digest=b"short")) == (
        log_pb2.REJECTION_REASON_INVALID
    )


def test_a_token_for_a_name_is_for_no_other(directory: Machine) -> None:
    directory.apply(added(node="n4"))
    assert directory.rejection(use("n5@d1")) == NODE
    assert result_of(directory.apply(use(taken=True))).node.name == "n4"


def test_a_taken_name_needs_a_token_for_that_name(directory: Machine) -> None:
    directory.apply(added())
    assert directory.rejection(use(taken=True)) == TAKEN
    assert result_of(directory.apply(use("n5@d1"))).node.name == "n5"


def test_a_token_that_nobody_used_can_be_revoked(directory: Machine) -> None:
    revoke = log_pb2.RevokeJoinToken(token_digest=TOKEN)
    assert directory.rejection(revoke) == UNKNOWN
    directory.apply(added())
    assert not result_of(directory.apply(revoke)).HasField("rejection")
    assert directory.rejection(use()) == UNKNOWN
    directory.apply(added())
    assert result_of(directory.apply(use())).node.name == "n4"
    # Who came with it stays on record.
    assert directory.rejection(revoke) == USED
    assert result_of(directory.apply(use())).node.name == "n4"

"""Messages: what is sent comes back the same, and nonsense stops at the door."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.raft_cluster import voter

from quorepo.cluster.raft.entries import (
    COMMAND,
    CONFIGURATION,
    FIRST_ENTRY,
    NO_OP,
    check_entry,
    decode_entry,
    encode_entry,
)
from quorepo.cluster.raft.wire import (
    Message,
    Refusal,
    WireError,
    decode_message,
    encode_message,
)
from quorepo.internal.v1 import log_pb2, peer_pb2

GROUP = log_pb2.Configuration(replicas=[voter("a"), voter("b", votes=False)]).SerializeToString()

EVERY_MESSAGE: list[Message] = [
    {"type": "pre_vote", "last_log_index": 9, "last_log_term": 3},
    {"type": "pre_vote_granted"},
    {"type": "request_vote", "last_log_index": 9, "last_log_term": 3},
    {"type": "response_vote"},
    {
        "type": "append_entries",
        "commit_index": 4,
        "prevLogIdx": 5,
        "prevLogTerm": 2,
        "entries": [
            (encode_entry(NO_OP, 1, b""), 6, 2),
            (encode_entry(COMMAND, 2, b"\x00command"), 7, 3),
            (encode_entry(CONFIGURATION, 3, GROUP), 8, 3),
        ],
    },
    {
        "type": "append_entries",
        "commit_index": 0,
        "prevLogIdx": 1,
        "prevLogTerm": 0,
        "entries": [],
    },
    {
        "type": "next_node_idx",
        "success": True,
        "next_node_idx": 8,
        "prev": 5,
        "applied_index": 3,
        "waits_for_packs": True,
        "disk_full": False,
        "disk_low": True,
    },
    {
        "type": "next_node_idx",
        "success": False,
        "next_node_idx": 2,
        "prev": 5,
        "applied_index": 0,
        "waits_for_packs": False,
        "disk_full": True,
        "disk_low": False,
    },
    {"type": "term_notice"},
    {"type": "timeout_now"},
    {"type": "apply_command", "request_id": 2**64 - 1, "command": b"x"},
    {"type": "apply_command_response", "request_id": 7, "log_idx": 12, "log_term": 3, "error": 0},
    {"type": "apply_command_response", "request_id": 7, "error": Refusal.PACKS_MISSING},
    {"type": "apply_command_response", "request_id": 7, "error": Refusal.QUEUE_FULL},
    {"type": "apply_command_response", "request_id": 7, "error": Refusal.NOT_LEADER},
    {"type": "apply_command_response", "request_id": 7, "error": Refusal.DENIED},
    {"type": "apply_command_response", "request_id": 7, "error": Refusal.DISK_FULL},
    {"type": "read_index_request", "read_id": 2**64 - 1},
    {"type": "read_index_reply", "read_id": 5, "index": 17},
    {"type": "leadership_ping", "round": 3},
    {"type": "leadership_pong", "round": 3},
    {
        "type": "snapshot_offer",
        "index": 900,
        "index_term": 2,
        "configuration": log_pb2.Configuration.FromString(GROUP),
    },
]


@pytest.mark.parametrize("message", EVERY_MESSAGE, ids=lambda message: message["type"])
def test_every_message_comes_back_the_same(message: Message) -> None:
    sent = {**message, "term": 3}
    data = encode_message(12, sent).SerializeToString()
    received = peer_pb2.GroupMessage.FromString(data)
    assert received.group == 12
    assert decode_message(received) == sent


def test_every_kind_of_the_protocol_is_covered() -> None:
    kinds = {encode_message(0, {**m, "term": 1}).WhichOneof("kind") for m in EVERY_MESSAGE}
    declared = peer_pb2.GroupMessage.DESCRIPTOR.oneofs_by_name["kind"].fields
    assert kinds == {field.name for field in declared}


def test_refusals_that_a_proposer_cannot_tell_apart_travel_as_not_leader() -> None:
    for refusal in (Refusal.NO_LEADER, Refusal.LEADER_LEAVING):
        message = {"type": "apply_command_response", "request_id": 7, "error": refusal, "term": 1}
        assert decode_message(encode_message(1, message))["error"] is Refusal.NOT_LEADER


def append(
    *entries: tuple[int, int, bytes], prev: tuple[int, int] = (5, 2), term: int = 3
) -> object:
    message = peer_pb2.GroupMessage(group=1, term=term)
    message.append_entries.prev_log_index, message.append_entries.prev_log_term = prev
    for index, entry_term, data in entries:
        message.append_entries.entries.add(index=index, term=entry_term, data=data)
    return message


GOOD = encode_entry(COMMAND, 0, b"c")


@pytest.mark.parametrize(
    "message",
    [
        peer_pb2.GroupMessage(group=1, term=1),
        append((7, 3, GOOD)),  # a gap
        append((5, 3, GOOD)),  # an overlap
        append((6, 3, GOOD), (6, 3, GOOD)),
        append((6, 4, GOOD)),  # an entry of a term to come
        append((6, 1, GOOD)),  # terms that fall
        append((6, 3, GOOD), (7, 2, GOOD)),
        append((6, 3, b"")),
        append((6, 3, FIRST_ENTRY)),
        append((6, 3, encode_entry(3, 0, b"\x80\x04K\x01."))),  # pysyncobj's VERSION: a pickle
        append((6, 3, encode_entry(255, 0, b""))),
        append((6, 3, encode_entry(CONFIGURATION, 0, b"\xff\xff"))),
        append((6, 3, encode_entry(CONFIGURATION, 0, b""))),  # nobody would vote
        append(prev=(0, 0)),
        peer_pb2.GroupMessage(group=1, append_reply=peer_pb2.AppendReply(success=True)),
        peer_pb2.GroupMessage(group=1, forward_reply=peer_pb2.ForwardReply(forward_id=1)),
    ],
)
def test_nonsense_is_refused(message: peer_pb2.GroupMessage) -> None:
    with pytest.raises(WireError):
        decode_message(message)


@given(st.binary(max_size=200))
def test_bytes_of_a_stranger_are_refused_or_understood(data: bytes) -> None:
    """Never anything else: no other exception may reach the Raft thread."""
    try:
        message = peer_pb2.GroupMessage.FromString(data)
    except Exception:
        return
    try:
        decode_message(message)
    except WireError:
        return


@given(st.sampled_from([COMMAND, NO_OP]), st.integers(0, 2**63), st.binary(max_size=50))
def test_entries_come_back_the_same(kind: int, time_ms: int, payload: bytes) -> None:
    data = encode_entry(kind, time_ms, payload)
    check_entry(2, data)
    entry = decode_entry(4, 9, 3, data)
    assert (entry.group, entry.index, entry.term) == (4, 9, 3)
    assert (entry.time_ms, entry.data) == (time_ms, payload)
    assert entry.kind == ("noop" if kind == NO_OP else "command")


def test_first_entry_has_no_time() -> None:
    entry = decode_entry(1, 1, 0, FIRST_ENTRY)
    assert (entry.kind, entry.time_ms, entry.data) == ("noop", 0, b"")

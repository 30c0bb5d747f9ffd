"""The messages between replicas: protobuf outside, the dicts that pysyncobj's code works with
inside.

Owns the translation and the check of everything that a peer says. Every message carries a term
(defect S6); nothing is pickled (X2). A message that contradicts itself raises WireError and is
dropped, before it touched any state. Must not know what a message leads to.

The dict of a message has "type" and "term" and, in pysyncobj's own names where it has one:

    request_vote, pre_vote         last_log_index, last_log_term
    response_vote, pre_vote_granted, term_notice, timeout_now
    append_entries                 commit_index, prevLogIdx, prevLogTerm, entries [(data, index,
    term)] next_node_idx                  success, next_node_idx, prev, applied_index,
    waits_for_packs apply_command                  request_id, command apply_command_response
    request_id, log_idx, log_term, error (0: appended) read_index_request             read_id
    snapshot_offer                 index, index_term, configuration
    read_index_reply               read_id, index (0: not known) leadership_ping, _pong
    round
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

from quorepo.cluster.raft.entries import check_entry
from quorepo.internal.v1 import peer_pb2

__all__ = ["Message", "Refusal", "WireError", "decode_message", "encode_message"]

Message = dict[str, Any]


class Refusal(enum.IntEnum):
    """Why a command was certainly not appended; the numbers are pysyncobj's FAIL_REASON where it
    has one."""

    QUEUE_FULL = 1
    NO_LEADER = 2
    NOT_LEADER = 4
    DENIED = 6
    PACKS_MISSING = 100
    LEADER_LEAVING = 101  # the leadership is being transferred
    DISK_FULL = 102  # of the leader, or of so many followers that nothing could be committed

    @property
    def reason(self) -> str:
        """The word in `Proposal.reason`."""
        return self.name.lower().replace("_", "-")


class WireError(ValueError):
    """A peer sent what no correct replica sends."""


_TO_FORWARD_ERROR = {
    Refusal.QUEUE_FULL: peer_pb2.FORWARD_ERROR_QUEUE_FULL,
    Refusal.NO_LEADER: peer_pb2.FORWARD_ERROR_NOT_LEADER,
    Refusal.NOT_LEADER: peer_pb2.FORWARD_ERROR_NOT_LEADER,
    Refusal.LEADER_LEAVING: peer_pb2.FORWARD_ERROR_NOT_LEADER,
    Refusal.DENIED: peer_pb2.FORWARD_ERROR_DENIED,
    Refusal.PACKS_MISSING: peer_pb2.FORWARD_ERROR_PACKS_MISSING,
    Refusal.DISK_FULL: peer_pb2.FORWARD_ERROR_DISK_FULL,
}
_FROM_FORWARD_ERROR = {
    peer_pb2.FORWARD_ERROR_QUEUE_FULL: Refusal.QUEUE_FULL,
    peer_pb2.FORWARD_ERROR_NOT_LEADER: Refusal.NOT_LEADER,
    peer_pb2.FORWARD_ERROR_DENIED: Refusal.DENIED,
    peer_pb2.FORWARD_ERROR_PACKS_MISSING: Refusal.PACKS_MISSING,
    peer_pb2.FORWARD_ERROR_DISK_FULL: Refusal.DISK_FULL,
}


def encode_message(group: int, message: Message) -> peer_pb2.GroupMessage:
    """The protobuf message of one dict."""
    out = peer_pb2.GroupMessage(group=group, term=message["term"])
    _ENCODERS[message["type"]](out, message)
    return out


def decode_message(message: peer_pb2.GroupMessage) -> Message:
    """The dict of one protobuf message. Raises WireError."""
    kind = message.WhichOneof("kind")
    if kind is None:
        raise WireError(f"a message for group {message.group} has no known kind")
    decoded = _DECODERS[kind](message)
    decoded["term"] = message.term
    return decoded


# ---- to protobuf


def _encode_pre_vote(out: peer_pb2.GroupMessage, message: Message) -> None:
    out.pre_vote.last_log_index = message["last_log_index"]
    out.pre_vote.last_log_term = message["last_log_term"]


def _encode_request_vote(out: peer_pb2.GroupMessage, message: Message) -> None:
    out.request_vote.last_log_index = message["last_log_index"]
    out.request_vote.last_log_term = message["last_log_term"]


def _encode_append_entries(out: peer_pb2.GroupMessage, message: Message) -> None:
    append = out.append_entries
    append.commit_index = message["commit_index"]
    append.prev_log_index = message["prevLogIdx"]
    append.prev_log_term = message["prevLogTerm"]
    for data, index, term in message["entries"]:
        append.entries.add(index=index, term=term, data=data)
    append.SetInParent()


def _encode_append_reply(out: peer_pb2.GroupMessage, message: Message) -> None:
    reply = out.append_reply
    reply.success = message["success"]
    reply.next_index = message["next_node_idx"]
    reply.prev_log_index = message["prev"]
    reply.applied_index = message["applied_index"]
    reply.waits_for_packs = message["waits_for_packs"]
    reply.disk_full = message["disk_full"]
    reply.disk_low = message["disk_low"]
    reply.SetInParent()


def _encode_forward(out: peer_pb2.GroupMessage, message: Message) -> None:
    out.forward.forward_id = message["request_id"]
    out.forward.data = message["command"]


def _encode_forward_reply(out: peer_pb2.GroupMessage, message: Message) -> None:
    reply = out.forward_reply
    reply.forward_id = message["request_id"]
    if error := message.get("error"):
        reply.error = _TO_FORWARD_ERROR[Refusal(error)]
    else:
        reply.log_index = message["log_idx"]
        reply.log_term = message["log_term"]


def _encode_read_index_request(out: peer_pb2.GroupMessage, message: Message) -> None:
    out.read_index_request.read_id = message["read_id"]


def _encode_read_index_reply(out: peer_pb2.GroupMessage, message: Message) -> None:
    out.read_index_reply.read_id = message["read_id"]
    out.read_index_reply.index = message["index"]


def _encode_ping(out: peer_pb2.GroupMessage, message: Message) -> None:
    out.leadership_ping.round = message["round"]


def _encode_pong(out: peer_pb2.GroupMessage, message: Message) -> None:
    out.leadership_pong.round = message["round"]


def _encode_snapshot_offer(out: peer_pb2.GroupMessage, message: Message) -> None:
    offer = out.snapshot_offer
    offer.index = message["index"]
    offer.term = message["index_term"]
    offer.configuration.CopyFrom(message["configuration"])


_ENCODERS: dict[str, Callable[[peer_pb2.GroupMessage, Message], None]] = {
    "pre_vote": _encode_pre_vote,
    "pre_vote_granted": lambda out, _: out.pre_vote_granted.SetInParent(),
    "request_vote": _encode_request_vote,
    "response_vote": lambda out, _: out.vote_granted.SetInParent(),
    "append_entries": _encode_append_entries,
    "next_node_idx": _encode_append_reply,
    "term_notice": lambda out, _: out.term_notice.SetInParent(),
    "timeout_now": lambda out, _: out.timeout_now.SetInParent(),
    "apply_command": _encode_forward,
    "apply_command_response": _encode_forward_reply,
    "read_index_request": _encode_read_index_request,
    "read_index_reply": _encode_read_index_reply,
    "leadership_ping": _encode_ping,
    "leadership_pong": _encode_pong,
    "snapshot_offer": _encode_snapshot_offer,
}


# ---- from protobuf


def _decode_request_vote(message: peer_pb2.GroupMessage) -> Message:
    ask = message.request_vote
    return {
        "type": "request_vote",
        "last_log_index": ask.last_log_index,
        "last_log_term": ask.last_log_term,
    }


def _decode_pre_vote(message: peer_pb2.GroupMessage) -> Message:
    ask = message.pre_vote
    return {
        "type": "pre_vote",
        "last_log_index": ask.last_log_index,
        "last_log_term": ask.last_log_term,
    }


def _decode_append_entries(message: peer_pb2.GroupMessage) -> Message:
    append = message.append_entries
    if append.prev_log_index < 1:
        raise WireError("an append begins before index 2, where all logs are the same")
    index, term = append.prev_log_index, append.prev_log_term
    entries = []
    for entry in append.entries:
        if entry.index != index + 1 or not term <= entry.term <= message.term:
            raise WireError(
                f"entry {entry.index} of term {entry.term} cannot follow entry {index} of term "
                f"{term} in an append of term {message.term}"
            )
        try:
            check_entry(entry.index, entry.data)
        except ValueError as error:
            raise WireError(str(error)) from error
        index, term = entry.index, entry.term
        entries.append((entry.data, index, term))
    return {
        "type": "append_entries",
        "commit_index": append.commit_index,
        "prevLogIdx": append.prev_log_index,
        "prevLogTerm": append.prev_log_term,
        "entries": entries,
    }


def _decode_append_reply(message: peer_pb2.GroupMessage) -> Message:
    reply = message.append_reply
    if reply.next_index < 2:
        raise WireError(f"an append reply asks for entry {reply.next_index}")
    return {
        "type": "next_node_idx",
        "success": reply.success,
        "next_node_idx": reply.next_index,
        "prev": reply.prev_log_index,
        "applied_index": reply.applied_index,
        "waits_for_packs": reply.waits_for_packs,
        "disk_full": reply.disk_full,
        "disk_low": reply.disk_low,
    }


def _decode_forward(message: peer_pb2.GroupMessage) -> Message:
    forward = message.forward
    return {
        "type": "apply_command",
        "request_id": forward.forward_id,
        "command": forward.data,
    }


def _decode_forward_reply(message: peer_pb2.GroupMessage) -> Message:
    reply = message.forward_reply
    decoded: Message = {"type": "apply_command_response", "request_id": reply.forward_id}
    if reply.error:
        # An error of a newer version is still "certainly not appended".
        decoded["error"] = _FROM_FORWARD_ERROR.get(reply.error, Refusal.NOT_LEADER)
    elif reply.log_index < 2 or reply.log_term < 1:
        raise WireError("a forward reply has neither a position nor an error")
    else:
        decoded.update(error=0, log_idx=reply.log_index, log_term=reply.log_term)
    return decoded


def _decode_snapshot_offer(message: peer_pb2.GroupMessage) -> Message:
    offer = message.snapshot_offer
    if offer.index < 1 or offer.term > message.term:
        raise WireError(f"a snapshot of entry {offer.index} of term {offer.term} is offered")
    if not any(replica.votes for replica in offer.configuration.replicas):
        raise WireError("a snapshot is offered by a group without voters")
    return {
        "type": "snapshot_offer",
        "index": offer.index,
        "index_term": offer.term,
        "configuration": offer.configuration,
    }


_DECODERS: dict[str, Callable[[peer_pb2.GroupMessage], Message]] = {
    "pre_vote": _decode_pre_vote,
    "pre_vote_granted": lambda _: {"type": "pre_vote_granted"},
    "request_vote": _decode_request_vote,
    "vote_granted": lambda _: {"type": "response_vote"},
    "append_entries": _decode_append_entries,
    "append_reply": _decode_append_reply,
    "term_notice": lambda _: {"type": "term_notice"},
    "timeout_now": lambda _: {"type": "timeout_now"},
    "forward": _decode_forward,
    "forward_reply": _decode_forward_reply,
    "read_index_request": lambda message: {
        "type": "read_index_request",
        "read_id": message.read_index_request.read_id,
    },
    "read_index_reply": lambda message: {
        "type": "read_index_reply",
        "read_id": message.read_index_reply.read_id,
        "index": message.read_index_reply.index,
    },
    "snapshot_offer": _decode_snapshot_offer,
    "leadership_ping": lambda message: {
        "type": "leadership_ping",
        "round": message.leadership_ping.round,
    },
    "leadership_pong": lambda message: {
        "type": "leadership_pong",
        "round": message.leadership_pong.round,
    },
}

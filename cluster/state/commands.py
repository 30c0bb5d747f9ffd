"""The commands of the log as the machine takes them: decoding, and what is wrong in any state.

A replica must not guess: bytes that do not parse, a version above the supported one, or a kind it
does not know end the process (an older program in a cluster that has moved on, or a damaged log).
A proposer therefore runs `check_command` before it proposes, so that nothing of the sort ever gets
into a log.

Pure: no clock, no randomness, no environment, no I/O.
"""

from __future__ import annotations

from typing import Literal

from google.protobuf.message import DecodeError

from quorepo.internal.v1 import log_pb2
from quorepo.storage.errors import FatalError, InvalidArgument

__all__ = [
    "COMMAND_VERSION",
    "DIRECTORY_GROUP",
    "REQUEST_ID_BYTES",
    "CommandKind",
    "check_command",
    "command_kind",
    "command_scope",
    "decode_command",
    "malformed",
    "rejection",
]

COMMAND_VERSION = 1
DIRECTORY_GROUP = 0
REQUEST_ID_BYTES = 16
_REPOSITORY_ID_CHARS_MAX = 64

CommandKind = Literal[
    "create_repository",
    "delete_repository",
    "transaction",
    "replace_packs",
    "prune",
    "set_head",
    "update_repository",
    "undelete_repository",
    "fork_repository",
    "reserve_path",
    "release_path",
    "rename_path",
    "register_node",
    "add_join_token",
    "use_join_token",
    "revoke_join_token",
    "begin_membership_change",
    "end_membership_change",
    "set_node_draining",
    "raise_level",
]
_JOIN_KINDS = ("add_join_token", "use_join_token", "revoke_join_token")
_MEMBERSHIP_KINDS = ("begin_membership_change", "end_membership_change", "set_node_draining")
_DIRECTORY_KINDS = (
    "reserve_path",
    "release_path",
    "rename_path",
    "register_node",
    *_JOIN_KINDS,
    *_MEMBERSHIP_KINDS,
    "raise_level",
)


def decode_command(data: bytes) -> log_pb2.Command:
    """The command of a log entry. Raises FatalError when this program can't know what it means."""
    try:
        command = log_pb2.Command.FromString(data)
    except DecodeError as error:
        raise FatalError(f"log entry holds no command: {error}") from error
    if command.version > COMMAND_VERSION:
        raise FatalError(
            f"log entry has command version {command.version}; this program knows"
            f" {COMMAND_VERSION}: start a newer quorepo on this node",
            exit_code=FatalError.EXIT_CONFIG,
        )
    if command.version == 0 or command.WhichOneof("kind") is None:
        raise FatalError(f"log entry has a command of no known kind (version {command.version})")
    return command


def command_kind(command: log_pb2.Command) -> CommandKind:
    """The kind of a decoded command."""
    kind = command.WhichOneof("kind")
    assert kind is not None  # decode_command refuses it
    return kind


def command_scope(command: log_pb2.Command) -> str:
    """The repository whose request ids the command's one belongs to; "" for the directory."""
    match command_kind(command):
        case "create_repository":
            return command.create_repository.repository_id
        case "delete_repository":
            return command.delete_repository.repository_id
        case "transaction":
            return command.transaction.repository_id
        case "replace_packs":
            return command.replace_packs.repository_id
        case "prune":
            return command.prune.repository_id
        case "set_head":
            return command.set_head.repository_id
        case "update_repository":
            return command.update_repository.repository_id
        case "undelete_repository":
            return command.undelete_repository.repository_id
        case "fork_repository":
            return command.fork_repository.repository_id
        case _:
            return ""


def malformed(command: log_pb2.Command, group: int) -> str | None:
    """Why `command` could not be right in any state of `group`; None when it could."""
    if len(command.request_id) != REQUEST_ID_BYTES:
        return f"request id has {len(command.request_id)} bytes, not {REQUEST_ID_BYTES}"
    kind = command_kind(command)
    if (group == DIRECTORY_GROUP) != (kind in _DIRECTORY_KINDS):
        return f"{kind} does not belong to group {group}"
    if kind not in _DIRECTORY_KINDS:
        return _repository_id_problem(command_scope(command))
    return None


def _repository_id_problem(repository_id: str) -> str | None:
    """An id becomes a folder name in apply, where a refusal would come too late."""
    if not (repository_id.isascii() and repository_id.isalnum()):
        return f"repository id {repository_id!a} is not alphanumeric"
    if len(repository_id) > _REPOSITORY_ID_CHARS_MAX:
        return f"repository id has {len(repository_id)} characters, over {_REPOSITORY_ID_CHARS_MAX}"
    return None


def check_command(data: bytes, group: int) -> None:
    """For proposers: raises InvalidArgument when `data` must not get into the log of `group`."""
    try:
        problem = malformed(decode_command(data), group)
    except FatalError as error:
        raise InvalidArgument(str(error)) from error
    if problem is not None:
        raise InvalidArgument(problem)


def rejection(reason: log_pb2.RejectionReason.ValueType, message: str) -> log_pb2.Result:
    """A typed refusal.

    Its message is replicated state too: change one only with COMMAND_VERSION, and never let it
    depend on the Python version (`repr` of a str does, through Unicode's tables: use `ascii`, in
    f-strings `!a`).
    """
    return log_pb2.Result(rejection=log_pb2.Rejection(reason=reason, message=message))

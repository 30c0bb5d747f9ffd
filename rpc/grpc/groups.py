"""Small messages of a stream put together: sending one costs more than what is in it.

Must not know any service.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from google.protobuf.message import Message

__all__ = ["INLINE_BYTES_MAX", "Group"]

INLINE_BYTES_MAX = 64 * 1024  # content that goes into a message of a group; more goes in chunks
_GROUP_BYTES = 256 * 1024

_Message = TypeVar("_Message", bound=Message)


class Group(Generic[_Message]):
    """What waits to be sent."""

    def __init__(self) -> None:
        self._messages: list[_Message] = []
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._messages)

    def add(self, message: _Message) -> bool:
        """Takes a message; True: the group is large enough to be sent."""
        self._messages.append(message)
        self._bytes += message.ByteSize()
        return self._bytes >= _GROUP_BYTES

    def take(self) -> list[_Message]:
        """All of them; the group is empty then."""
        messages, self._messages, self._bytes = self._messages, [], 0
        return messages

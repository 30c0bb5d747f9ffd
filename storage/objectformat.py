"""The two object formats of Git, SHA-1 and SHA-256, in one enum.

Owns: id lengths, hash functions, names. Object ids are raw `bytes` inside quorepo; hex only at
protocol edges. Knows nothing of files or of the network.

SHA-1 is hashlib's, without collision detection: a colliding object is refused at ingest by
comparing it with the stored one, as `git index-pack` does (see ingest.py).
"""

from __future__ import annotations

import enum
import hashlib
from typing import TYPE_CHECKING, Protocol

import dulwich.object_format

from quorepo.storage.errors import InvalidArgument

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["Hash", "ObjectFormat"]


class Hash(Protocol):
    """What quorepo uses of a hashlib object."""

    def update(self, data: ReadableBuffer, /) -> None: ...
    def digest(self) -> bytes: ...
    def hexdigest(self) -> str: ...


class ObjectFormat(enum.Enum):
    """The values are git's names, as in `extensions.objectFormat` and the protocol."""

    SHA1 = "sha1"
    SHA256 = "sha256"

    # Plain attributes, set once below: they are read per object, and a property costs a call.
    hash_bytes: int  # length of a raw object id
    hex_bytes: int  # length of a hex object id
    number: int  # git's number, and that of ObjectFormat in log.proto

    def __init__(self, git_name: str) -> None:
        self.hash_bytes = 20 if git_name == "sha1" else 32
        self.hex_bytes = 2 * self.hash_bytes
        self.number = 1 if git_name == "sha1" else 2

    @property
    def name_bytes(self) -> bytes:
        """Git's name for protocol lines, such as b"sha1"."""
        return str(self.value).encode()

    @property
    def dulwich(self) -> dulwich.object_format.ObjectFormat:
        """The same format as dulwich's object."""
        return dulwich.object_format.OBJECT_FORMATS[self.value]

    @property
    def zero(self) -> bytes:
        """The raw id of no object."""
        return bytes(self.hash_bytes)

    @property
    def zero_hex(self) -> bytes:
        """The id of no object as the protocol writes it."""
        return b"0" * self.hex_bytes

    def new_hash(self, data: bytes = b"") -> Hash:
        """A fresh hash object of this format, fed with `data`."""
        return hashlib.sha1(data) if self.hash_bytes == 20 else hashlib.sha256(data)  # noqa: S324

    def object_id(self, type_name: bytes, content: bytes) -> bytes:
        """The raw id of the object of that type ("commit", "tree", "blob", "tag") and content."""
        hasher = self.new_hash(b"%s %d\0" % (type_name, len(content)))
        hasher.update(content)
        return hasher.digest()

    @classmethod
    def from_name(cls, name: str | bytes) -> ObjectFormat:
        """The format with git's name. Raises InvalidArgument for any other name."""
        text = name.decode("ascii", "replace") if isinstance(name, bytes) else name
        try:
            return cls(text)
        except ValueError:
            raise InvalidArgument(f"unknown object format {text!r}") from None

    @classmethod
    def from_number(cls, number: int) -> ObjectFormat:
        """The format with that number in log.proto. Raises InvalidArgument for any other number."""
        for candidate in cls:
            if candidate.number == number:
                return candidate
        raise InvalidArgument(f"unknown object format number {number}")

"""The vote file: the term a replica has seen and whom it voted for in it (Raft paper, figure 2).

Owns: that both are on the disk before anything said in that term leaves the node, and that they
never go back. Must not know of the log. One file per group:

    magic, version, term, length of the vote (2^32-1: no vote), vote in UTF-8, crc32 of all before
    it

Replaced whole by write, fsync, rename, fsync of the folder: a crash leaves the old or the new one.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from quorepo.cluster.raft.durable import (
    fatal_on_os_error,
    replace_durably,
    sync_directory,
)
from quorepo.storage.errors import FatalError

__all__ = ["FORMAT_VERSION", "REPLACE", "VoteFile"]

FORMAT_VERSION = 1
REPLACE = "votes.replace"  # the prefix of its failpoints

_MAGIC = b"quorepoV"
_FIXED = struct.Struct("<8sIQI")  # magic, version, term, length of the vote
_CRC = struct.Struct("<I")
_NO_VOTE = 0xFFFF_FFFF


class VoteFile:
    """Term and vote of one group's replica. For the Raft thread only."""

    def __init__(self, path: Path) -> None:
        """Reads `path`; a file that is not there is term 0 without a vote.

        The folder is synced first: a process that was killed behind the rename, and before its
        sync, left a file that can be read and may be gone after a power cut.

        Raises:
            FatalError: damaged or unreadable (EXIT_IO_ERROR), or of a newer format (EXIT_CONFIG).
        """
        self._path = path
        self._term = 0
        self._voted_for: str | None = None
        with fatal_on_os_error("read", path):
            self._exists = path.exists()
            if self._exists:
                sync_directory(path.parent)
            data = path.read_bytes() if self._exists else None
        if data is not None:
            self._term, self._voted_for = self._decode(data)

    @property
    def path(self) -> Path:
        return self._path

    @property
    def exists(self) -> bool:
        """Whether anything was ever stored."""
        return self._exists

    @property
    def term(self) -> int:
        """The highest term that this replica has seen; 0 at first."""
        return self._term

    @property
    def voted_for(self) -> str | None:
        """The replica that got the vote in `term`."""
        return self._voted_for

    def store(self, term: int, voted_for: str | None) -> None:
        """Stores both; durable on return. Does nothing when they are stored already.

        Raises:
            FatalError: EXIT_IO_ERROR when it may not be durable; EXIT_BUG for a term that falls
            and for a
                second vote in one term.
        """
        if self._exists and (term, voted_for) == (self._term, self._voted_for):
            return
        if term < self._term:
            raise FatalError(f"term {term} is older than term {self._term} in {str(self._path)!r}")
        if term == self._term and self._voted_for not in (None, voted_for):
            raise FatalError(
                f"{voted_for!r} cannot have the vote of term {term} in {str(self._path)!r}: "
                f"{self._voted_for!r} has it"
            )
        replace_durably(self._path, [_encode(term, voted_for)], REPLACE)
        self._exists = True
        self._term = term
        self._voted_for = voted_for

    def _decode(self, data: bytes) -> tuple[int, str | None]:
        body, crc = data[: -_CRC.size], data[-_CRC.size :]
        if len(body) < _FIXED.size or zlib.crc32(body) != _CRC.unpack(crc)[0]:
            raise self._damaged("its checksum is wrong")
        magic, version, term, length = _FIXED.unpack_from(body)
        if magic != _MAGIC:
            raise self._damaged("it does not begin as a vote file does")
        if version > FORMAT_VERSION:
            raise FatalError(
                f"vote file {str(self._path)!r} has format version {version}, and this program "
                f"knows up to {FORMAT_VERSION}; start this node with the release that wrote it, or "
                "a newer one",
                exit_code=FatalError.EXIT_CONFIG,
            )
        vote = body[_FIXED.size :]
        if length == _NO_VOTE and not vote:
            return term, None
        if length != len(vote):
            raise self._damaged(f"it has {len(vote)} bytes of a vote of {length}")
        return term, vote.decode()

    def _damaged(self, what: str) -> FatalError:
        return FatalError(
            f"vote file {str(self._path)!r} is damaged: {what}; without it this node could vote "
            "twice in a term: check the disk, move the data directory away, and let the node "
            "rejoin with an empty one",
            exit_code=FatalError.EXIT_IO_ERROR,
        )


def _encode(term: int, voted_for: str | None) -> bytes:
    vote = b"" if voted_for is None else voted_for.encode()
    length = _NO_VOTE if voted_for is None else len(vote)
    body = _FIXED.pack(_MAGIC, FORMAT_VERSION, term, length) + vote
    return body + _CRC.pack(zlib.crc32(body))

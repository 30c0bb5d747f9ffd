"""The header of a git bundle that arrives piece by piece: gitformat-bundle(5), versions 2 and 3.

Owns which bundles can become a repository: those that are complete in themselves. Must not know
where the bytes come from, or what is in the pack behind the header.
"""

from __future__ import annotations

from quorepo.storage.errors import InvalidArgument, LimitExceeded
from quorepo.storage.objectformat import ObjectFormat

__all__ = ["BundleHeaderParser"]

_SIGNATURES = {b"# v2 git bundle": 2, b"# v3 git bundle": 3}
_CAPABILITIES_MAX = 16
_LINE_EXTRA_BYTES = 256  # of a line, beside a name: an id, a capability


class BundleHeaderParser:
    """Call `feed` with each piece; it returns the bytes that belong to the pack, which is empty
    until the header is complete, `finished`. Call `close` at the end.

    All errors are InvalidArgument or LimitExceeded and mean that nothing happened.
    """

    def __init__(self, *, refs_max: int, ref_name_bytes_max: int) -> None:
        """The limits limits.refs_per_push_max and limits.ref_name_bytes_max."""
        self._refs_max = refs_max
        self._line_bytes_max = ref_name_bytes_max + _LINE_EXTRA_BYTES
        self._buffer = bytearray()
        self._version = 0
        self._capabilities = 0
        self._names: set[bytes] = set()
        self.finished = False
        self.object_format = ObjectFormat.SHA1
        self.refs: list[tuple[bytes, bytes]] = []  # full name, raw id
        self.head_id: bytes | None = None  # raw id, when the bundle has HEAD

    def feed(self, data: bytes) -> bytes:
        """Takes the next piece; returns the part of it that belongs to the pack."""
        if self.finished:
            return data
        self._buffer += data
        start = 0
        while not self.finished:
            end = self._buffer.find(b"\n", start)
            if (end if end >= 0 else len(self._buffer)) - start > self._line_bytes_max:
                raise InvalidArgument(
                    f"a line of the bundle's header has more than {self._line_bytes_max} bytes"
                )
            if end < 0:
                del self._buffer[:start]
                return b""
            self._take(bytes(self._buffer[start:end]))
            start = end + 1
        rest = bytes(self._buffer[start:])
        self._buffer.clear()
        return rest

    def close(self) -> None:
        """Raises InvalidArgument when the bytes ended before the header did."""
        if not self.finished:
            raise InvalidArgument("the bundle ends inside its header")

    def _take(self, line: bytes) -> None:
        if not self._version:
            self._version = _SIGNATURES.get(line, 0)
            if not self._version:
                raise InvalidArgument(
                    "this is no git bundle of version 2 or 3",
                    next_step="make one with: git bundle create FILE --all",
                )
        elif not line:
            self.finished = True
        elif line.startswith(b"@") and self._version == 3 and not self.refs:
            self._take_capability(line[1:])
        elif line.startswith(b"-"):
            raise InvalidArgument(
                "the bundle continues a history that a new repository does not have (it has "
                "prerequisites)",
                next_step="make a complete one with: git bundle create FILE --all",
            )
        else:
            self._take_ref(line)

    def _take_capability(self, capability: bytes) -> None:
        self._capabilities += 1
        key, _, value = capability.partition(b"=")
        if key == b"object-format" and self._capabilities <= _CAPABILITIES_MAX:
            self.object_format = ObjectFormat.from_name(value.decode("ascii", "replace"))
        elif key == b"filter":
            raise InvalidArgument(
                "the bundle is partial (it has a filter): objects are missing in it",
                next_step="make a complete one with: git bundle create FILE --all",
            )
        else:
            raise InvalidArgument(f"the bundle needs {_shown(key)}, which is not known here")

    def _take_ref(self, line: bytes) -> None:
        text, separator, name = line.partition(b" ")
        try:
            oid = bytes.fromhex(text.decode("ascii"))
        except ValueError:
            oid = b""
        if len(oid) != self.object_format.hash_bytes or not separator or not name:
            raise InvalidArgument(f"a line of the bundle's header is no ref: {_shown(line)}")
        if name in self._names:
            raise InvalidArgument(f"the bundle has {_shown(name)} twice")
        if len(self.refs) >= self._refs_max:
            raise LimitExceeded(
                f"the bundle has more refs than limits.refs_per_push_max ({self._refs_max})",
                limit="limits.refs_per_push_max",
                next_step="put fewer refs into it and push the others afterwards",
            )
        self._names.add(name)
        if name == b"HEAD":
            self.head_id = oid
        else:
            self.refs.append((name, oid))


def _shown(value: bytes) -> str:
    return repr(value[:200].decode("utf-8", "backslashreplace"))

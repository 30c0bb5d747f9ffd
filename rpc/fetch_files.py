"""Where packs lie between being built by a worker and being sent to a client."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

__all__ = ["FetchFiles"]


class FetchFiles:
    """A folder of this edge alone; nothing in it outlives a request or a restart."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / "tmp"

    def clear(self) -> None:
        """Makes the folder, and removes what a killed edge left in it."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._folder.glob("fetch-*"):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def new(self) -> Iterator[Path]:
        """A fresh name; the file is gone when the block ends."""
        path = self._folder / f"fetch-{uuid.uuid4().hex}.pack"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

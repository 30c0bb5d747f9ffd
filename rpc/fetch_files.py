"""The folder of what workers make for one request: packs for clients, and merges in the making."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

__all__ = ["FetchFiles"]


class FetchFiles:
    """A folder of this edge alone; nothing in it outlives a restart."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / "tmp"

    def clear(self) -> None:
        """Makes the folder, and removes what an edge left in it that was here before."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (*self._folder.glob("fetch-*"), *self._folder.glob("read-*")):
            path.unlink(missing_ok=True)
        for folder in self._folder.glob("merge-*"):
            shutil.rmtree(folder)

    def new(self) -> Path:
        """A name that nothing has. Who takes it removes the file."""
        return self._folder / f"fetch-{uuid.uuid4().hex}.pack"

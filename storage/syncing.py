"""Several files made durable at once.

A journalling file system makes all that it is asked for at one time durable in one go, and as many
goes one after the other otherwise: two files next to each other take little longer than one.
Owns that, and nothing of what the files are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

__all__ = ["fsync_dirs", "fsync_together"]

_THREADS_MAX = 8
_threads = ThreadPoolExecutor(_THREADS_MAX, thread_name_prefix="fsync")


def fsync_together(descriptors: Sequence[int]) -> None:
    """Returns once all are durable. Raises the OSError of one that is not."""
    first, *others = descriptors
    syncs = [_threads.submit(os.fsync, descriptor) for descriptor in others]
    try:
        os.fsync(first)
    finally:
        wait(syncs)  # nobody may close a descriptor under a sync
    for sync in syncs:
        sync.result()


def fsync_dirs(*folders: Path) -> None:
    """Makes the entries of several folders durable."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    descriptors: list[int] = []
    try:
        descriptors.extend(os.open(folder, flags) for folder in folders)
        fsync_together(descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)

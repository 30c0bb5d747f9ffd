"""Removes abandoned uploads from quarantine.

Only files that have no digest for a name go: incoming uploads and half-received copies whose
process died. A pack under its digest stays: its transaction may be on its way, or stand in the
journal (a refused one too), and whoever replays the journal has to be given it (architecture,
invariant 2).
"""

from __future__ import annotations

import logging
import time

from quorepo.storage.layout import GroupLayout
from quorepo.storage.logs import fields

__all__ = ["sweep_uploads"]

log = logging.getLogger(__name__)


def sweep_uploads(layout: GroupLayout, group: int, age_s_min: float) -> int:
    """Removes temporary files of quarantine older than `age_s_min` seconds; returns how many."""
    removed = 0
    horizon = time.time() - age_s_min
    for path in sorted(layout.quarantine.glob("*.tmp")):
        try:
            if path.stat().st_mtime <= horizon:
                path.unlink()
                removed += 1
        except FileNotFoundError:
            continue  # its owner was quicker
    if removed:
        log.info("abandoned uploads removed", extra=fields(group=group, files=removed))
    return removed

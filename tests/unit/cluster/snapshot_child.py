"""A process for test_snapshot_staging.py: installs a snapshot, or starts again, and dies where it
is told. Run as: python snapshot_child.py install|start DIRECTORY."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from test_snapshot_staging import WORK  # type: ignore[import-not-found]

WORK[sys.argv[1]](Path(sys.argv[2]))

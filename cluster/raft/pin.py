"""Refuses any pysyncobj but the one that the engine's overrides were written against.

Owns: the version and the hashes of its source. Everything in `engine.py` replaces private methods
by name; a release that moves one line of them would silently bring back a defect that loses
acknowledged writes. So this is checked before pysyncobj is imported, and a difference ends the
process.

To move to another release: read its difference to the pinned one against the table in
cluster/DESIGN.md and every override in engine.py, run the seeds, then put the new hashes here.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from pathlib import Path

from quorepo.storage.errors import FatalError

__all__ = [
    "PINNED_SHA256",
    "PINNED_VERSION",
    "Node",
    "SyncObj",
    "SyncObjConf",
    "Transport",
    "check_installed",
    "check_source",
]

PINNED_VERSION = "0.3.17"

# Every module that an import of pysyncobj.syncobj runs.
PINNED_SHA256: Mapping[str, str] = {
    "__init__.py": "4966a9dd893542b1b0e0fcef3d2ea44f2f40919d66b684992e5511be7503c036",
    "atomic_replace.py": "43a5252a241939b7f457cbbf39480260c91f0d2035a62b170bf1e1d20d0f9c1d",
    "config.py": "fbbc7ff9f18e4d15a7fd563376e42f5bd192956879d4b810b056d5248b955698",
    "dns_resolver.py": "4b88da2b45e20fbb299fb7a21f2595369b6314700b687fb8858891999bce14e0",
    "encryptor.py": "db20725465efdfc6d7a3b5b2112f53bc5426d36c56312ebdf5fbcf05423a7c19",
    "fast_queue.py": "8477fe5fdf36d9766df933310d3d66ee953d1afc195b1e6482b3a1498fc517bd",
    "journal.py": "9cf1eaf6acc704581a4cf7d3de330a404403913107adc91c929778b7e3f35edf",
    "monotonic.py": "d116df70e1f81bcab1fb89191fe2fe18486bc25187401d73fd6101cfe686e0a3",
    "node.py": "e4a3f027cd8291f558334bb9c977e952f6b6989e7e1fa1588d3005ef0b990e2c",
    "pickle.py": "e9327780738065cec5d600484b936c91e7c13875206cb584d5ff7f5d0dc9c474",
    "pipe_notifier.py": "587d964bfa5d62320f3541cbb283ff3e282cb2db95e1b8cfd888dc3d53af82aa",
    "poller.py": "f69ac749fb410670282fd9520c5805ffc684c8a5f762a927127753d9be8551e6",
    "serializer.py": "4d39fde2f15000ad8f507ec229ebd4f6a86371b6f84d4dc1439a9cccd52857ee",
    "syncobj.py": "e8bdf06797085d734df86e24ab4802fe87893dff77268565ec036f7ad4a1cfe4",
    "tcp_connection.py": "7784ed8da031369fe36f805cb186a2e94a3bd6f10fed2dd59c8cc3713fd6331c",
    "tcp_server.py": "bde2f216c1a585029188d0438b44762e2e797dfc53bbce387839daaa46b9a60d",
    "transport.py": "0c9d89f9c4781ec9772df8011d7975a1a4a1a5f541357e12eae85a813e92b50b",
    "utility.py": "1aa0c49d3558c5df6489235b94ae44357b382f9f0792b9d72ae6e5ae0c0039ea",
    "version.py": "0b8426a8b52ecf874193897d26c4214acbd85335145ea9ff17e27a22b1132943",
}


def check_installed() -> None:
    """Checks the installed pysyncobj without importing it.

    Raises:
        FatalError: EXIT_CONFIG, when it is missing or is not the pinned one, byte for byte.
    """
    spec = importlib.util.find_spec("pysyncobj")
    if spec is None or spec.origin is None:
        raise _refusal("it is not installed")
    check_source(Path(spec.origin).parent, importlib.metadata.version("pysyncobj"))


def check_source(package: Path, version: str) -> None:
    """Checks one source folder of pysyncobj; see `check_installed`."""
    if version != PINNED_VERSION:
        raise _refusal(f"version {version} is installed")
    for name, expected in PINNED_SHA256.items():
        path = package / name
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise _refusal(f"{str(path)!r} cannot be read ({error.strerror})") from error
        if found != expected:
            raise _refusal(f"{str(path)!r} has sha256 {found}, not {expected}")


def _refusal(problem: str) -> FatalError:
    return FatalError(
        f"the raft engine needs pysyncobj {PINNED_VERSION} exactly as released, but {problem}; "
        f"run: pip install --force-reinstall pysyncobj=={PINNED_VERSION}",
        exit_code=FatalError.EXIT_CONFIG,
    )


check_installed()

# The one place that imports pysyncobj for the engine: nothing of it runs before the check.
from pysyncobj.config import SyncObjConf  # noqa: E402
from pysyncobj.node import Node  # noqa: E402
from pysyncobj.syncobj import SyncObj  # noqa: E402
from pysyncobj.transport import Transport  # noqa: E402

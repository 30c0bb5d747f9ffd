"""Who this node is: `node.json`.

A disk has an id of its own, made when the data directory is first used; `<node>@<disk id>` is the
replica id that stands in the Raft configurations. A node that lost its disk therefore never votes
under the id that it voted under before: an emptied directory is another replica, and the cluster
can tell.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import secrets
from pathlib import Path

from google.protobuf.message import DecodeError

from quorepo.cluster.boots import Boot, begin_boot
from quorepo.internal.v1 import log_pb2
from quorepo.storage.errors import FatalError
from quorepo.storage.layout import write_durably

__all__ = ["FORMAT_VERSION", "NodeIdentity"]

# Raised when a data directory written by this version can't be read by the one before.
FORMAT_VERSION = 1
_NOT_STARTED = Boot(0, b"")


@dataclasses.dataclass(frozen=True, slots=True)
class NodeIdentity:
    """The content of `node.json`; `cluster_id` is empty until the node belongs to a cluster."""

    node: str
    replica_id: str
    boot: Boot
    cluster_id: str = ""
    founding: log_pb2.Configuration | None = None

    @property
    def formed(self) -> bool:
        return bool(self.cluster_id)

    @classmethod
    def open(cls, data_dir: Path, node: str, *, start: bool = True) -> NodeIdentity:
        """Reads the identity, or makes one for an empty directory; each start is put on record.
        Without `start` the directory is only looked at: nothing is written.

        Raises FatalError (EXIT_CONFIG) when the directory is another node's, newer or unreadable.
        """
        path = data_dir / "node.json"
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            _refuse_state_without_identity(data_dir)
            identity = cls(node, f"{node}@{secrets.token_hex(4)}", _NOT_STARTED)
            identity.save(data_dir)
            return identity._started(data_dir, new=True)
        try:
            stored = json.loads(raw)
            version = int(stored["format_version"])
            identity = cls(
                node=str(stored["node"]),
                replica_id=str(stored["replica_id"]),
                boot=_NOT_STARTED,
                cluster_id=str(stored["cluster_id"]),
                founding=_decode_configuration(stored["founding"]),
            )
        except (ValueError, KeyError, TypeError, DecodeError) as error:
            raise FatalError(
                f"{path} is damaged ({error}); nothing was changed; restore the file from a "
                "backup, or empty the data directory to rejoin the cluster as a new replica",
                exit_code=FatalError.EXIT_CONFIG,
            ) from error
        if version > FORMAT_VERSION:
            raise FatalError(
                f"{data_dir} has format version {version}, this program knows up to "
                f"{FORMAT_VERSION}; nothing was changed; start the newer quorepo again",
                exit_code=FatalError.EXIT_CONFIG,
            )
        if identity.node != node:
            raise FatalError(
                f"{data_dir} belongs to node {identity.node!r}, but the configuration says "
                f"{node!r}; nothing was changed; correct node.name or node.data_dir",
                exit_code=FatalError.EXIT_CONFIG,
            )
        return identity._started(data_dir) if start else identity

    def _started(self, data_dir: Path, *, new: bool = False) -> NodeIdentity:
        """This identity with one more start on record, durably."""
        return dataclasses.replace(self, boot=begin_boot(data_dir, self.replica_id, new=new))

    def joined(self, cluster_id: str, founding: log_pb2.Configuration) -> NodeIdentity:
        """This identity as a member of a cluster; the caller saves it."""
        return dataclasses.replace(self, cluster_id=cluster_id, founding=founding)

    def save(self, data_dir: Path) -> None:
        """Writes `node.json` durably."""
        founding = "" if self.founding is None else _encode_configuration(self.founding)
        content = {
            "format_version": FORMAT_VERSION,
            "node": self.node,
            "replica_id": self.replica_id,
            "cluster_id": self.cluster_id,
            "founding": founding,
        }
        write_durably(data_dir / "node.json", (json.dumps(content, indent=2) + "\n").encode())


def _encode_configuration(configuration: log_pb2.Configuration) -> str:
    return base64.b64encode(configuration.SerializeToString(deterministic=True)).decode()


def _decode_configuration(text: str) -> log_pb2.Configuration | None:
    if not text:
        return None
    return log_pb2.Configuration.FromString(base64.b64decode(text, validate=True))


def _refuse_state_without_identity(data_dir: Path) -> None:
    """A journal without `node.json` is a half-restored disk: never start on it as if new."""
    for name in ("journal", "groups"):
        folder = data_dir / name
        if folder.is_dir() and any(folder.iterdir()):
            raise FatalError(
                f"{folder} exists, but {data_dir}/node.json does not; nothing was changed; restore "
                "node.json, or empty the data directory to rejoin as a new replica",
                exit_code=FatalError.EXIT_CONFIG,
            )

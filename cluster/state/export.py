"""The canonical dump of a state: equal on all replicas at one index, whatever their batches were.

One JSON array per line: the table's name, then its columns as named here, rows sorted by primary
key. Bytes are {"x": hex}. Table `local` is left out; everything else is replicated. A new column
goes to the end of its query, with a new FORMAT_VERSION. Pure, and bounded in memory.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from typing import Any

__all__ = ["export_lines"]

_QUERIES = (
    (
        "position",
        "SELECT group_id, applied_index, applied_term, log_time_ms, configuration,"
        " configuration_index FROM position",
    ),
    (
        "repositories",
        "SELECT repository_id, incarnation, counter, object_format, head, head_open, prune_epoch,"
        " checksum, created_ms, deleted_ms, detached_head, description, read_only, purge_ms,"
        " deleted_path, forked_from FROM repositories ORDER BY repository_id",
    ),
    (
        "refs",
        "SELECT repository_id, name, oid FROM refs ORDER BY repository_id, name",
    ),
    (
        "packs",
        "SELECT repository_id, digest, index_digest, pack_bytes, index_bytes, object_count,"
        " thin_bytes, thin_object_count, added_counter, arrived_ms FROM packs"
        " ORDER BY repository_id, digest",
    ),
    (
        "removed_packs",
        "SELECT repository_id, digest, removed_counter, index_digest, pack_bytes, index_bytes,"
        " object_count, thin_bytes, thin_object_count, added_counter, arrived_ms, removed_index,"
        " removed_ms FROM removed_packs ORDER BY repository_id, digest, removed_counter",
    ),
    (
        "transactions",
        "SELECT repository_id, counter, kind, log_index, time_ms, actor, request_id"
        " FROM transactions ORDER BY repository_id, counter",
    ),
    (
        "ref_changes",
        "SELECT repository_id, counter, position, name, old_oid, new_oid"
        " FROM ref_changes ORDER BY repository_id, counter, position",
    ),
    (
        "requests",
        "SELECT request_id, scope, log_index, age_ms, result FROM requests"
        " ORDER BY request_id, scope",
    ),
    (
        "paths",
        "SELECT path, repository_id, group_id, created_ms FROM paths ORDER BY path",
    ),
    (
        "nodes",
        "SELECT name, replica_id, peer_address, http_url, grpc_address, metrics_url, version,"
        " registered_ms FROM nodes ORDER BY name",
    ),
    (
        "join_tokens",
        "SELECT token_digest, node, expires_ms, actor, created_ms, used_by, used_key, used_ms"
        " FROM join_tokens ORDER BY token_digest",
    ),
    (
        "membership_changes",
        "SELECT change_id, kind, node, replica_id, former_replica_id, peer_address, keep_learner,"
        " forced, actor, state, begun_index, started_ms, ended_ms FROM membership_changes"
        " ORDER BY change_id",
    ),
    (
        "node_marks",
        "SELECT name, draining, keep_learner, actor, since_ms FROM node_marks ORDER BY name",
    ),
    ("cluster_level", "SELECT level, raised_index, raised_ms FROM cluster_level"),
    (
        "configurations",
        "SELECT log_index, time_ms, configuration FROM configurations ORDER BY log_index",
    ),
)


def export_lines(connection: sqlite3.Connection) -> Iterator[bytes]:
    """The dump's lines. The caller opened a transaction, so that all tables are of one moment."""
    for table, query in _QUERIES:
        for row in connection.execute(query):
            line = json.dumps([table, *row], default=_hex, separators=(",", ":"))
            yield line.encode("ascii") + b"\n"


def _hex(value: Any) -> dict[str, str]:
    assert isinstance(value, bytes), value
    return {"x": value.hex()}

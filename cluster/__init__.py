"""Raft groups, the state machine, replication of packs. Knows nothing of HTTP or the public API."""

"""Snapshots: state and packs of a group, copied between replicas outside the Raft messages."""

"""One replica's disk: packs, quarantine, git protocol. Knows no Raft and no network."""

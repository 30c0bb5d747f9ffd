"""One replica's disk: packs, quarantine, git protocol encoders. Knows nothing of Raft or the network."""

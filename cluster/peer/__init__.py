"""What nodes say to each other over gRPC: Raft messages, packs, formation."""

"""Messages that never leave a cluster: log commands, peer API, edge-to-core API."""

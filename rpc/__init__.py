"""Everything a client talks to: smart HTTP, gRPC, the CLI; and the processes of a node."""

"""The public gRPC services of quorepo.v1."""

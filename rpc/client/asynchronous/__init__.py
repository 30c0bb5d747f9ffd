"""The client of the gRPC API, asynchronous."""

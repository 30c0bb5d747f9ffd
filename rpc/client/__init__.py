"""The Python client of the gRPC API: `quorepo.Client` and `quorepo.aio.Client`.

`asynchronous/` is written by hand; `synchronous/` is made from it by `unasync.py`, so that both do
the same. Must not know the server, the cluster or the command line.
"""

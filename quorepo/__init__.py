"""quorepo: Git storage that survives losing a machine.

The packages `quorepo.cluster`, `quorepo.storage` and `quorepo.rpc` are the top-level folders of the
project, linked in here; `quorepo.v1` holds the generated stubs of the public API.
"""

__version__ = "0.1.0"

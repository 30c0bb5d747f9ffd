"""The processes of a node: supervisor, core, edge."""

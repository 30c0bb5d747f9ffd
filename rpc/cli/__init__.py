"""The `quorepo` command."""

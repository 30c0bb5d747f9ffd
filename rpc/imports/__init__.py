"""Repositories imported from other git servers: one process per import, told of as operations."""

"""Generated stubs of the public API (protos/quorepo/v1); do not edit."""

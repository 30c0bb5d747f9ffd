"""Generated stubs (protos/quorepo/internal/v1); do not edit."""

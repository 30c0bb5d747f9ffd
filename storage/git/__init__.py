"""The git wire protocol: pure parsers, encoders and pack building; no sockets."""

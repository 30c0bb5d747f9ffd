"""The replicated state machine: a pure apply over SQLite, its store and its readers."""

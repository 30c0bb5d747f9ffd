"""`quorepo demo`: a small cluster of real processes on localhost."""

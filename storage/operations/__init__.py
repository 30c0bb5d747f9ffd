"""New objects that the server makes itself: trees edited, commits and tags written, as one pack.

Runs in workers. What is made is distrusted as a push is: the pack goes through the same ingest.
Must not know refs, Raft or messages.
"""

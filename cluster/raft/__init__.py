"""The Raft engine around pysyncobj: journal, votes, groups, and the one thread that drives them."""

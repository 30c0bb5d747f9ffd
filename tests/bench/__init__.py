"""Benchmarks: ours and the peer on the same machine in the same run, ratios printed, never asserted.

Not collected by pytest; run one with `python -m tests.bench.<name>` from the project's root.
"""

"""Benchmarks: ours and the peer in the same run on one machine; ratios printed, never asserted.

Not collected by pytest; run one with `PYTHONPATH=tests python -m bench.<name>` from the project's root.
"""

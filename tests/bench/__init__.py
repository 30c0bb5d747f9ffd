"""Benchmarks: ours and the peer in the same run on one machine; ratios printed, never asserted.

Not collected by pytest; from the project's root: `PYTHONPATH=tests python -m bench.<name>`.
"""

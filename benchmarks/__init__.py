"""Benchmarks: `python -m benchmarks OP|sampling|training|all`. See `_harness.py` for the method."""

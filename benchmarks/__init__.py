"""Measurements that the documentation quotes: `python -m benchmarks --json`, or one of them by name."""

"""Benchmarks: measurements that a person starts, not tests."""

"""Benchmarks that print what they measured beside what they are compared with: ``python -m bench``."""

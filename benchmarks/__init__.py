"""Benchmarks: one question per `bench_*.py`. How to write and read them: CONTRIBUTING.md."""

"""Benchmarks that drive the public library calls and print one JSON object each."""

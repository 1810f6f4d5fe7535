"""Evaluate models on all benchmarks of a configuration, and compare them."""

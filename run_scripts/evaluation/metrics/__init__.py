"""Modules of the library `evaluate`, for `evaluate.load("run_scripts/evaluation/metrics/classification")`."""

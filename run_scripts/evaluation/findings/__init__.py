"""Evaluate several findings at once: metrics, calibration, thresholds and subgroups of each."""

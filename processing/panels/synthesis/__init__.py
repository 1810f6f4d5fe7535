"""Compound figures with known panels, drawn from single figures and plots."""

"""Intervals by bootstrap and exact ones, and paired tests."""

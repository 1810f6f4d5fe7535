"""Accuracy of answers to all, open, and closed visual questions."""

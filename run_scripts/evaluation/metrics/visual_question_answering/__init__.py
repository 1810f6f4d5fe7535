"""Accuracy of answers to visual questions, open and closed ones apart."""

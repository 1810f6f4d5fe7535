"""Classify the images that a user names: labels, classifiers, predictions and metrics."""

"""Collect the facts of model cards, and publish models and datasets on the Hub."""

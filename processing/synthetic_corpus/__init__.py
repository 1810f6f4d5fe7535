"""Synthetic figures and captions in the layout of PubMed Central's bucket, for the quickstart and the tests."""

from .articles import ZERO_SHOT_TEMPLATES
from .bucket import write_labels, write_synthetic_corpus
from .figures import FIGURE_KINDS


__all__ = ["FIGURE_KINDS", "ZERO_SHOT_TEMPLATES", "write_labels", "write_synthetic_corpus"]

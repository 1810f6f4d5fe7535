"""A corpus of drawn figures and captions in the layout of PubMed Central's bucket: material to learn from."""

from .bucket import DrawnCorpus, draw_corpus
from .captions import KIND_NAMES, ZERO_SHOT_TEMPLATES


__all__ = ["KIND_NAMES", "ZERO_SHOT_TEMPLATES", "DrawnCorpus", "draw_corpus"]

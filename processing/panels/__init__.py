"""Panels of compound figures."""

from .captions import SplitCaption, split_caption
from .cutting import cut_panels


__all__ = ["SplitCaption", "cut_panels", "split_caption"]

"""Panels of compound figures."""

from .captions import SplitCaption, split_caption


__all__ = ["SplitCaption", "split_caption"]

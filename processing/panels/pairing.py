"""Assign the parts of a caption to the panels of a figure."""

from .captions import SplitCaption, split_caption
from .figure_panels import FigurePanels


def split_for(figure: FigurePanels, caption: str) -> tuple[SplitCaption, list[str | None]]:
    """Return the split caption of a figure, and the text of each panel, None if there is none.

    Labels that were read in the figure confirm the split. Without any, a caption of as many panels is split, in reading
    order. Otherwise the caption is not split.
    """
    labels = [panel.label for panel in figure.panels]
    read = [label for label in labels if label is not None]
    split = split_caption(caption, read or None) if figure.compound else SplitCaption(caption.strip())
    if read:
        return split, [None if label is None else split.panels.get(label) for label in labels]
    if len(split.panels) != len(labels):
        return SplitCaption(caption.strip()), [None] * len(labels)
    return split, list(split.panels.values())


def labels_for(figure: FigurePanels, split: SplitCaption) -> list[str | None]:
    """Return the label of each panel: the one that was read, or that of its part of the caption in reading order.

    Args:
        figure: Panels of a figure.
        split: Its caption, split by [`split_for`].
    """
    labels = [panel.label for panel in figure.panels]
    if any(label is not None for label in labels) or len(split.panels) != len(labels):
        return labels
    return list(split.panels)

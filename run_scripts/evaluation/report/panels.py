"""The page of panels: metrics, confused groups of image types, and the worst and least certain figures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from biomedclip.processing.bit_depth_biomedclip import to_8_bit
from biomedclip.processing.images.reading import ImageError, read_row_image
from biomedclip.processing.panels.image_types import GROUP_OF, GROUPS
from biomedclip.processing.panels.scores import imageclef_accuracy

from ...cli.html import literal
from ..caption_metrics import MODES, SHOWN_METRICS
from ..panel_metrics import MeasuredFigure
from .gallery import SHOWN, Entry, gallery, verdict
from .page import confusion_table, heading, paragraph, table, write_page
from .sections import environment, introduction, metrics_table, notes, title_of


SIDE = 360  # largest width and height of a figure in pixels
ANNOTATED, FOUND = "#0b5fff", "#ff7a00"  # colors that people with color blindness can tell apart
_WIDTHS = {ANNOTATED: 4, FOUND: 2}  # pixels of the lines; a found box is drawn over an annotated one
_OVER = "with 95 % intervals over articles"


def write_panel_report(path: Path, results: Mapping[str, Any], *, figures: Sequence[MeasuredFigure]) -> None:
    """Write the report of panels.

    Args:
        path: The HTML file.
        results: The content of `results.json`.
        figures: Annotated figures, and what was found in them. Only the pictures of the galleries are read.
    """
    metrics = results["metrics"]
    sections = [
        introduction(results, f"{metrics['figures']:,} figures of {metrics['articles']:,} articles"),
        notes(results, "figures"),
        heading("Metrics"),
        _metrics(metrics),
        heading("Image types"),
        _types(metrics, figures),
        _captions(metrics.get("sub_captions") or {}),
        _galleries(figures),
        environment(results),
    ]
    write_page(path, title_of(results), sections)


def _metrics(metrics: Mapping[str, Any]) -> str:
    compound = metrics["compound_figures"] / metrics["figures"]
    always = {"f1": 2 * compound / (compound + 1), "precision": compound, "recall": 1.0, "accuracy": compound}
    boxes: dict[str, float | None] = dict.fromkeys(("imageclef_accuracy", "recall", "precision", "average_precision"))
    labels: dict[str, float | None] = dict.fromkeys(("recall", "accuracy_of_found_panels", "precision"))
    parts = (
        ("panels_of_compound_figures", f"Panels of {metrics['compound_figures']:,} compound figures at IoU 0.5", boxes),
        ("panels_of_all_figures", "Panels of all figures at IoU 0.5", boxes),
        ("printed_labels", "Printed labels", labels),
    )
    html = metrics_table(
        metrics["single_or_compound"],
        always,
        "always compound",
        caption=f"Compound or single figures, {_OVER}",
    )
    return html + "".join(
        metrics_table(metrics[key], names, caption=f"{title}, {_OVER}") for key, title, names in parts
    )


def _types(metrics: Mapping[str, Any], figures: Sequence[MeasuredFigure]) -> str:
    types = metrics["image_types"]
    if types["accuracy"] is None:
        return paragraph("There are no found panels whose type is both annotated and predicted.")
    names: dict[str, float | None] = dict.fromkeys(("group_accuracy", "accuracy", "macro_f1"))
    of_group = [
        (name, each["panels"], each["precision"], each["recall"], each["f1"])
        for name, each in types["of_group"].items()
        if each["panels"]
    ]
    pairs = Counter(
        (GROUP_OF[true.image_type], str(ours.image_type.group))
        for figure in figures
        for ours, true in figure.pairs()
        if true.image_type is not None
    )
    true_groups = [group for group in GROUPS if any(true == group for true, _ in pairs)]
    given = {group for _, group in pairs}
    columns = [*(group for group in GROUPS if group in {*true_groups, *given}), *sorted(given - set(GROUPS))]
    matrix = [[pairs[true, group] for group in columns] for true in true_groups]
    return (
        metrics_table(types, names, caption=f"Types of {types['found_panels']:,} found panels, {_OVER}")
        + table("Groups of image types", ["group", "panels", "precision", "recall", "F1"], of_group)
        + confusion_table(
            "Groups of found panels: true ones in rows, predicted ones in columns", true_groups, matrix, columns
        )
    )


def _captions(found: Mapping[str, Any]) -> str:
    modes = [mode for mode in MODES if mode in found]
    if not modes:
        return ""
    rows = [(label, *(found[mode][name] for mode in modes)) for name, label in SHOWN_METRICS.items()]
    title = f"Sub-captions of {found['captions']:,} captions (intervals are in results.json)"
    return heading("Captions") + table(title, ["metric", *(MODES[mode] for mode in modes)], rows)


@dataclass(frozen=True)
class Faults:
    """The errors in what was found in a figure."""

    figure: MeasuredFigure

    @cached_property
    def counts(self) -> dict[str, int]:
        """Return the number of faults of each kind."""
        pairs, figure = self.figure.pairs(), self.figure
        labels = [(ours.label, true.label) for ours, true in pairs if true.label is not None]
        groups = [(ours.image_type.group, GROUP_OF[true.image_type]) for ours, true in pairs if true.image_type]
        return {
            "missed panels": len(figure.gold.panels) - len(pairs),
            "false panels": len(figure.found.panels) - len(pairs),
            "wrong labels": sum(ours is None or ours.upper() != true for ours, true in labels)
            if figure.gold.has_labels
            else 0,
            "wrong image groups": sum(ours is not None and ours != true for ours, true in groups),
        }

    @property
    def total(self) -> int:
        """Return the number of all faults."""
        return sum(self.counts.values())

    @cached_property
    def accuracy(self) -> float:
        """Return ImageCLEF's accuracy of the boxes."""
        return imageclef_accuracy(*self.figure.boxes)

    def reasons(self) -> str:
        """Return the faults in words."""
        parts = [f"{count} {kind if count > 1 else kind[:-1]}" for kind, count in self.counts.items() if count]
        if self.figure.is_compound != self.figure.found.compound:
            true, given = ("compound", "single") if self.figure.is_compound else ("single", "compound")
            parts.insert(0, f"{true} figure taken for a {given} one")
        return ", ".join(parts)


def worst_figures(figures: Sequence[MeasuredFigure], number: int = SHOWN) -> list[Faults]:
    """Return the figures with faults: first those with the lowest accuracy of boxes, then those with most faults."""
    faulty = [fault for fault in map(Faults, figures) if fault.reasons()]
    return sorted(faulty, key=lambda fault: (fault.accuracy, -fault.total))[:number]


def uncertain_figures(figures: Sequence[MeasuredFigure], number: int = SHOWN) -> list[Faults]:
    """Return the figures whose probability of being compound is closest to 0.5.

    Figures with a probability of 0 or 1, such as those of the X-Y cut, are left out.
    """
    unsure = [Faults(figure) for figure in figures if 0 < figure.found.compound_score < 1]
    return sorted(unsure, key=lambda fault: abs(fault.figure.found.compound_score - 0.5))[:number]


def _galleries(figures: Sequence[MeasuredFigure]) -> str:
    legend = (
        f'<p class="legend"><span style="border-color: {ANNOTATED}"></span> annotated panel &nbsp; '
        f'<span style="border-color: {FOUND}"></span> found panel</p>'
    )
    html, worst = heading("The worst figures"), worst_figures(figures)
    html += paragraph(
        "Figures with the lowest ImageCLEF accuracy of their panels." if worst else "There are no errors."
    )
    html += legend + gallery(map(_entry, worst), "large", SIDE) if worst else ""
    if unsure := uncertain_figures(figures):
        text = "Figures whose probability of being compound is closest to 0.5."
        html += heading("The least certain figures") + paragraph(text)
        html += legend + gallery(map(_entry, unsure), "large", SIDE)
    return html


def _entry(fault: Faults) -> Entry:
    figure, reasons = fault.figure, fault.reasons()
    faults = f'<span class="wrong">{literal(reasons)}</span>' if reasons else verdict(True)
    caption = (
        f"{literal(figure.gold.name)}<br>panels: {len(figure.gold.panels)}, found: {len(figure.found.panels)}, "
        f"accuracy {fault.accuracy:.2f}, compound with probability {figure.found.compound_score:.2f}<br>{faults}"
    )
    found, true = figure.boxes
    try:
        image: Any = draw_boxes(read_row_image(figure.gold.file), true, found)
    except (ImageError, ImportError):  # the file was changed after its panels were found
        image = None
    return Entry(image, f"{figure.gold.name}: {reasons or 'right'}", caption)


def draw_boxes(image: Image.Image, annotated: Sequence[Any], found: Sequence[Any], side: int = SIDE) -> Image.Image:
    """Return a smaller figure with annotated boxes in blue and found boxes in orange.

    Boxes are left, top, right and bottom in pixels of the original figure.
    """
    size = image.size
    small = to_8_bit(image).convert("RGB")
    small.thumbnail((side, side))
    across, down = small.width / size[0], small.height / size[1]
    draw = ImageDraw.Draw(small)
    for boxes, color in ((annotated, ANNOTATED), (found, FOUND)):
        for left, top, right, bottom in boxes:
            low = (max(0.0, left * across), max(0.0, top * down))
            high = (min(small.width - 1.0, right * across), min(small.height - 1.0, bottom * down))
            draw.rectangle((*low, max(low[0], high[0]), max(low[1], high[1])), outline=color, width=_WIDTHS[color])
    return small

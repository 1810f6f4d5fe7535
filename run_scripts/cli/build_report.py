"""Tables of a build and of a verification for the terminal."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from biomedclip.model_cards.formatting import percent, size
from biomedclip.processing.panels.image_types import UNKNOWN

from .reporting import say, show_table


if TYPE_CHECKING:
    from biomedclip.processing.pmc.verify import Verification  # needs fcntl, which Windows does not have


MAX_REASONS = 10  # report.json contains all of them


def show_report(report: Mapping[str, Any]) -> None:
    """Print the contents of a built dataset and what was skipped."""
    inventory = f", inventory of {report['inventory_date']}" if report["inventory_date"] else ""
    took = f", in {duration(report['seconds'])}" if report["seconds"] is not None else ""
    say(f"Built from {report['source']}{inventory}{took}")
    articles, figures = report["articles"], report["figures"]
    rows = [("seen", articles["seen"], ""), ("kept", articles["kept"], share(articles["kept"], articles["seen"]))]
    rows += _left_out("dropped", articles["dropped"], articles["seen"])
    show_table("Articles", rows, ["", "count", "fraction"])
    if snapshot := report.get("snapshot"):
        say(
            f"Published until {snapshot['published_until']}. Skipped: {snapshot['articles_published_later']:,} later "
            f"articles, {snapshot['articles_without_date']:,} without a date."
        )

    rows = [("figures seen", figures["seen"], "")]
    rows += _left_out("skipped", figures["skipped"], figures["seen"])
    pairs = report["pairs"]
    rows += [("pairs", pairs, "")]
    for name, count in (
        ("mentioned in a paragraph", report["mentions"]["pairs_with"]),
        ("of one panel", report["panels"]),
        ("of an animated image", report["animated"]),
        ("with the bytes of another pair", report["duplicates"]["same_bytes"]),
        ("with the image of another pair", report["duplicates"]["same_image"]),
    ):
        if count:
            rows += [(f"pairs {name}", count, share(count, pairs))]
    show_table("Figures and pairs", rows, ["", "count", "fraction"])

    if "composition" in report:
        _show_panels(report["composition"], report["panel_detection"], pairs)
    split_rows = [
        (split, count["articles"], count["pairs"], share(count["pairs"], pairs), count["shards"], size(count["bytes"]))
        for split, count in report["splits"].items()
    ]
    show_table("Splits", split_rows, ["", "articles", "pairs", "fraction", "shards", "size"])
    rows = [(code, count, share(count, pairs)) for code, count in largest(report["licenses"], MAX_REASONS)]
    show_table("Licenses", rows, ["", "pairs", "fraction"])

    captions, images = report["caption_length"], report["image_size"]
    columns = ["", "mean", *(f"{q} %" for q in captions["percentiles"])]
    length_rows = [
        (name, *(f"{value:,.0f}" for value in (part["mean"], *part["percentiles"].values())))
        for name, part in ((f"caption, {captions['unit']}", captions), ("image, shorter side", images))
    ]
    show_table("Captions and images: mean and percentiles", length_rows, columns)
    say(
        f"{percent(captions['within_256'])} of the captions have 256 {captions['unit']} or fewer, "
        f"{percent(images['above_336'])} of the images more than 336 pixels on the shorter side."
    )
    for name in ("formats", "modes"):
        parts = (f"{key} {share(count, pairs)}" for key, count in largest(report[name], MAX_REASONS))
        say(f"{name.capitalize()}: {', '.join(parts)}")
    if report["articles_moved_to_fill_a_split"]:
        say(f"Articles moved to fill an empty split: {len(report['articles_moved_to_fill_a_split'])}")
    if report["update"]:
        say("Since the last build: " + ", ".join(f"{count:,} {name}" for name, count in report["update"].items()))


def _show_panels(composition: Mapping[str, Any], found: Mapping[str, int], pairs: int) -> None:
    figures, compound = found["examined_figures"], found["compound_figures"]
    rows = [
        ("figures examined", figures, ""),
        ("compound figures", compound, share(compound, figures)),
        ("captions of these that were split", found["split_captions"], share(found["split_captions"], compound)),
        ("figures on which the detector failed", found["failed_figures"], share(found["failed_figures"], figures)),
        *((f"rows: {kind}", count, share(count, pairs)) for kind, count in composition["rows"].items()),
    ]
    show_table("Panels", rows, ["", "count", "fraction"])
    types = composition["image_types"]
    if types.keys() - {UNKNOWN}:
        total = sum(types.values())
        rows = [(name, count, share(count, total)) for name, count in composition["image_groups"].items()]
        show_table("Panels and single figures by group", rows, ["", "images", "fraction"])
        rows = [(name, count, share(count, total)) for name, count in largest(types, MAX_REASONS)]
        show_table("Panels and single figures by type", rows, ["", "images", "fraction"])


def show_verification(result: "Verification", name: str) -> None:
    """Print what was verified in the dataset `name`, and every fault."""
    rows: list[tuple[str, Any]] = [(f"{what} checked", count) for what, count in result.checked.items()]
    rows.append(("hashes", "checked" if result.verifiable else "not verifiable: report.json has none"))
    rows.append(("faults", len(result.faults)))
    show_table(f"Verification of {name}", rows, ["", "result"])
    for fault in result.faults:
        # Faults contain untrusted names, so escape sequences are removed.
        sys.stdout.write("".join(character if character.isprintable() else "?" for character in fault) + "\n")


def largest(counts: Mapping[str, int], limit: int) -> list[tuple[str, int]]:
    """Return names and counts in descending order. Counts beyond the limit are summed."""
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    if len(ordered) <= limit:
        return ordered
    rest = ordered[limit - 1 :]
    return [*ordered[: limit - 1], (f"{len(rest)} others", sum(count for _, count in rest))]


def share(count: int, total: int) -> str:
    """Return a count as a percentage of a total."""
    return percent(count / total) if total else "-"


def duration(seconds: float) -> str:
    """Format a duration."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _left_out(word: str, reasons: Mapping[str, int], total: int) -> list[tuple[str, int, str]]:
    return [(f"{word}: {reason}", count, share(count, total)) for reason, count in largest(reasons, MAX_REASONS)]

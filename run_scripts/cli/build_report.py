"""What a build tells whoever started it: a few short tables."""

import sys
from collections.abc import Mapping
from typing import Any

from biomedclip.model_cards.formatting import percent, size
from biomedclip.processing.pmc.verify import Verification

from .reporting import say, show_table


REASONS = 10  # as many as a person reads; report.json holds them all


def show_report(report: Mapping[str, Any]) -> None:
    """Prints what was built and what was left out.

    Args:
        report: The report of `biomedclip build`.
    """
    inventory = f", inventory of {report['inventory_date']}" if report["inventory_date"] else ""
    took = f", in {duration(report['seconds'])}" if report["seconds"] is not None else ""
    say(f"Built from {report['source']}{inventory}{took}")
    articles, figures = report["articles"], report["figures"]
    rows = [("seen", articles["seen"], ""), ("kept", articles["kept"], share(articles["kept"], articles["seen"]))]
    rows += _left_out("dropped", articles["dropped"], articles["seen"])
    show_table("Articles", rows, ["", "count", "share"])
    if snapshot := report.get("snapshot"):
        say(
            f"Published until {snapshot['published_until']}. Left out: {snapshot['articles_published_later']:,} later "
            f"articles, {snapshot['articles_without_date']:,} without a date."
        )

    rows = [("figures seen", figures["seen"], "")]
    rows += _left_out("skipped", figures["skipped"], figures["seen"])
    pairs = report["pairs"]
    rows += [("pairs", pairs, "")]
    for name, count in (
        ("with a paragraph that cites the figure", report["mentions"]["pairs_with"]),
        ("of one panel of a figure", report["panels"]),
        ("with the first frame of an animated image", report["animated"]),
        ("with the same bytes as another", report["duplicates"]["same_bytes"]),
        ("whose picture looks like that of another", report["duplicates"]["same_picture"]),
    ):
        if count:
            rows += [(f"pairs {name}", count, share(count, pairs))]
    show_table("Figures and pairs", rows, ["", "count", "share"])

    split_rows = [
        (split, count["articles"], count["pairs"], share(count["pairs"], pairs), count["shards"], size(count["bytes"]))
        for split, count in report["splits"].items()
    ]
    show_table("Splits", split_rows, ["", "articles", "pairs", "share", "shards", "size"])
    rows = [(code, count, share(count, pairs)) for code, count in largest(report["licenses"], REASONS)]
    show_table("Licences", rows, ["", "pairs", "share"])

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
        parts = (f"{key} {share(count, pairs)}" for key, count in largest(report[name], REASONS))
        say(f"{name.capitalize()}: {', '.join(parts)}")
    if report["articles_moved_to_fill_a_split"]:
        say(f"Moved so that no split is empty: {len(report['articles_moved_to_fill_a_split'])} articles")
    if report["update"]:
        say("Since the last build: " + ", ".join(f"{count:,} {name}" for name, count in report["update"].items()))


def show_verification(result: Verification, name: str) -> None:
    """Print what was checked in a built set, and every fault.

    Args:
        result: What [`verify_dataset`] returned.
        name: The name of the set.
    """
    rows: list[tuple[str, Any]] = [(f"{what} checked", count) for what, count in result.checked.items()]
    rows.append(("hashes", "checked" if result.verifiable else "not verifiable: report.json has none"))
    rows.append(("faults", len(result.faults)))
    show_table(f"Verification of {name}", rows, ["", "result"])
    for fault in result.faults:
        # Names in it are untrusted, so escape sequences are removed.
        sys.stdout.write("".join(character if character.isprintable() else "?" for character in fault) + "\n")


def largest(counts: Mapping[str, int], limit: int) -> list[tuple[str, int]]:
    """Names and counts, the largest first; those beyond the limit in one."""
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    if len(ordered) <= limit:
        return ordered
    rest = ordered[limit - 1 :]
    return [*ordered[: limit - 1], (f"{len(rest)} others", sum(count for _, count in rest))]


def share(count: int, total: int) -> str:
    """A count as part of a total, in percent."""
    return percent(count / total) if total else "-"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _left_out(word: str, reasons: Mapping[str, int], total: int) -> list[tuple[str, int, str]]:
    return [(f"{word}: {reason}", count, share(count, total)) for reason, count in largest(reasons, REASONS)]

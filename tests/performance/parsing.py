"""Articles a second of the JATS parser, beside lxml's bare parse and pubmed_parser on the same files.

python tests/performance/parsing.py --output parsing.json

Bare lxml builds the tree and nothing else: no parser that stands on it can be faster. All ways take turns in one
process, file by file, and seconds are those of the processor, so that what else the machine does falls on none of them
alone; medians over the rounds are shown.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lxml import etree
from tqdm.auto import tqdm

from biomedclip.processing.pmc.jats import parse_figures


SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
FOLDERS = {
    "pmc_mirror": "pmc_mirror/PMC*/*.xml",
    "jats_xml": "jats_xml/**/*.*xml",
    "jats_with_images": "jats_with_images/**/*.*xml",
}
BARE, OURS, THEIRS = "lxml, bare parse", "biomedclip, parse_figures", "pubmed_parser, parse_pubmed_caption"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=SHARED, help="folder that holds the articles")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", help="JSON file for the figures")
    options = parser.parse_args()
    ways = ways_to_parse()
    files = {name: sorted(map(str, options.data.glob(pattern))) for name, pattern in FOLDERS.items()}
    files["all of them"] = [path for paths in files.values() for path in paths]
    if not files["all of them"]:
        parser.error(f"no articles below {options.data}: --data names the folder of pmc_mirror and jats_xml")
    results: dict[str, Any] = {
        "machine": machine(),
        "versions": versions(),
        "folders": {name: take_turns(ways, paths, options.rounds, name) for name, paths in files.items() if paths},
    }
    show(results)
    if options.output:
        Path(options.output).write_text(json.dumps(results, indent=2) + "\n")


def ways_to_parse() -> dict[str, Callable[[str, bytes], object]]:
    """Each takes a path and the bytes that were read from it; pubmed_parser reads the file once more."""
    ways: dict[str, Callable[[str, bytes], object]] = {
        BARE: lambda path, xml: etree.fromstring(xml),
        OURS: lambda path, xml: parse_figures(xml),
    }
    try:
        import pubmed_parser
    except ImportError:
        sys.stderr.write("pubmed_parser is not installed (pip install pubmed_parser): it is left out.\n")
    else:
        ways[THEIRS] = lambda path, xml: pubmed_parser.parse_pubmed_caption(path)
    return ways


def take_turns(
    ways: dict[str, Callable[[str, bytes], object]], paths: list[str], rounds: int, title: str
) -> dict[str, Any]:
    """Articles and megabytes a second of each way over the same files, and its ratio to bare lxml round by round."""
    contents = [Path(path).read_bytes() for path in paths]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    refused = dict.fromkeys(ways, 0)
    for turn in tqdm(range(rounds + 1), desc=title):
        spent = dict.fromkeys(ways, 0.0)
        for path, xml in zip(paths, contents, strict=True):
            for name, way in ways.items():
                started = time.process_time()
                try:
                    way(path, xml)
                except Exception:  # pubmed_parser raises all kinds; what it took until then counts
                    refused[name] += not turn
                spent[name] += time.process_time() - started
        if turn:  # the first round warms up
            for name in ways:
                seconds[name].append(spent[name])
    megabytes = sum(map(len, contents)) / 1e6
    return {
        "articles": len(paths),
        "megabytes": megabytes,
        "ways": {
            name: {
                "articles_per_second": len(paths) / statistics.median(seconds[name]),
                "megabytes_per_second": megabytes / statistics.median(seconds[name]),
                "times_bare": statistics.median(
                    bare / own for bare, own in zip(seconds[BARE], seconds[name], strict=True)
                ),
                "refused": refused[name],
            }
            for name in ways
        },
    }


def machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, one core of {os.cpu_count()}"


def versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0], "libxml2": ".".join(map(str, etree.LIBXML_VERSION))}
    for name in ("lxml", "pubmed_parser"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def show(results: dict[str, Any]) -> None:
    lines = [
        results["machine"],
        ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
        "",
        "| files | way | articles/s | MB/s | times bare lxml | articles refused |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for folder, figures in results["folders"].items():
        for name, row in figures["ways"].items():
            cells = [f"{row['articles_per_second']:.0f}", f"{row['megabytes_per_second']:.1f}"]
            cells += [f"{row['times_bare']:.2f}", str(row["refused"])]
            lines.append(
                f"| {folder}, {figures['articles']} of {figures['megabytes']:.1f} MB | {name} | {' | '.join(cells)} |"
            )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

"""Articles per second of the JATS parser, compared with lxml's bare parse and pubmed_parser on the same files.

python tests/performance/parsing.py --output parsing.json

Bare lxml only builds the tree, so no parser based on it can be faster. Seconds are processor time, medians over rounds.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pubmed_parser
from lxml import etree
from timing import median_ratio, parser_of, report, take_turns

from biomedclip.processing.pmc.jats import parse_figures


FOLDERS = {
    "pmc_mirror": "pmc_mirror/PMC*/*.xml",
    "jats_xml": "jats_xml/**/*.*xml",
    "jats_with_images": "jats_with_images/**/*.*xml",
}
BARE = "lxml, bare parse"


def main() -> None:
    parser = parser_of(__doc__, rounds=9)
    options = parser.parse_args()
    results, rows = {}, []
    for folder, pattern in FOLDERS.items():
        paths = sorted(options.data.glob(pattern))
        if not paths:
            parser.error(f"--data {options.data}: no articles match {pattern}")
        results[folder] = measure(paths, options.rounds)
        rows += [(f"{folder}, {name}", *found.values()) for name, found in results[folder].items()]
    columns = ["files and parser", "articles/s", "MB/s", "times bare lxml", "refused"]
    report(results, [("Parsing of articles", rows, columns)], options.output)


def measure(paths: list[Path], rounds: int) -> dict[str, dict[str, Any]]:
    contents = {str(path): path.read_bytes() for path in paths}
    parsers: dict[str, Callable[[str, bytes], Any]] = {
        BARE: lambda path, xml: etree.fromstring(xml),
        "biomedclip, parse_figures": lambda path, xml: parse_figures(xml),
        "pubmed_parser, parse_pubmed_caption": lambda path, xml: pubmed_parser.parse_pubmed_caption(path),
    }
    ways = {name: lambda parse=parse: count_refused(parse, contents) for name, parse in parsers.items()}
    seconds, refused = take_turns(ways, rounds, time.process_time)
    megabytes = sum(map(len, contents.values())) / 1e6
    return {
        name: {
            "articles_per_second": len(paths) / statistics.median(seconds[name]),
            "megabytes_per_second": megabytes / statistics.median(seconds[name]),
            "times_bare": median_ratio(seconds[BARE], seconds[name]),
            "refused": refused[name],
        }
        for name in ways
    }


def count_refused(parse: Callable[[str, bytes], Any], contents: dict[str, bytes]) -> int:
    refused = 0
    for path, xml in contents.items():
        try:
            parse(path, xml)
        except Exception:  # pubmed_parser raises many kinds of errors
            refused += 1
    return refused


if __name__ == "__main__":
    main()

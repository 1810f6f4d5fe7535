"""What the performance tests share: ways that take turns, ratios round by round, and the machine's name."""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from biomedclip.run_scripts.cli.reporting import say, show_table, versions, write_json


SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def parser_of(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """Return a parser with the options that all scripts have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED, help="folder of articles, captions and a tokenizer")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds; one more warms up")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    parser.set_defaults(**defaults)
    return parser


def take_turns(
    ways: Mapping[str, Callable[[], Any]], rounds: int, clock: Callable[[], Any] = time.perf_counter
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Run every way once per round. Return the seconds of each way and round, and the last results."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results = {}
    for turn in tqdm(range(rounds + 1), desc="rounds"):
        for name, way in ways.items():
            started = clock()
            results[name] = way()
            if turn:  # the first round warms up
                seconds[name].append(clock() - started)
    return seconds, results


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the median of the ratios of all rounds."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def machine() -> str:
    """Return the processor and the number of its cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores"


def report(results: dict[str, Any], tables: Sequence[tuple[str, Sequence[Any], Sequence[str]]], output: Any) -> None:
    """Print tables of (title, rows, columns) and write a JSON file if `output` is given."""
    say(machine())
    for title, rows, columns in tables:
        show_table(title, rows, columns)
    if output:
        write_json(output, {"machine": machine(), "versions": versions(), **results})

"""Whether training learns on real articles: recall at 10 on articles that it has not seen, beside chance.

python tests/performance/learning.py path/of/a/mirror results
python tests/performance/learning.py path/of/a/mirror results --seeds 0 1 2 --text-model a_bert --max-steps 150

The commands are run as a person would: `biomedclip build`, `train` with the quickstart's small model and `evaluate
retrieval`, the last two once for each seed. Options that this script does not know go to `train`. Articles are split by
the hash of their number: no figure of a held-out article is seen in training, and the test split is used for nothing
but the last table. OUTPUT gets `learning.json` and `curves.png` (of the first seed, recall on the validation split).
No network is needed.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from biomedclip.run_scripts.cli.plots import plot_curves
from biomedclip.run_scripts.cli.reporting import say, show_table, versions, write_json


SPLIT = "0.55,0.15,0.3"
DIRECTIONS = ("image_to_text", "text_to_image")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="mirror of PMC's bucket")
    parser.add_argument("output", type=Path, help="empty folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split-fractions", default=SPLIT, help="train, validation and test")
    options, training = parser.parse_known_args()
    data = options.output / "set"
    biomedclip(
        "build", "--source", options.source, "--output-dir", data, "--license", "all", "--workers", 1,
        "--split-fractions", options.split_fractions,
    )  # fmt: skip
    results: dict[str, Any] = {"split_fractions": options.split_fractions, "training": training, "runs": []}
    for seed in options.seeds:
        run, evaluation = options.output / f"run_{seed}", options.output / f"evaluation_{seed}"
        started = time.monotonic()
        biomedclip(
            "train", "--config", "quickstart", "--train-data", data, "--output-dir", run, "--seed", seed,
            "--save-strategy", "no", *training,
        )  # fmt: skip
        seconds = round(time.monotonic() - started)
        biomedclip("evaluate", "retrieval", "--model", run, "--data", data, "--output-dir", evaluation)
        metrics = json.loads((evaluation / "results.json").read_text())["metrics"]
        history = json.loads((run / "trainer_state.json").read_text())["log_history"]
        losses = [entry["loss"] for entry in history if "loss" in entry]
        results["runs"].append({"seed": seed, "seconds": seconds, "metrics": metrics, "losses": losses})
        if seed == options.seeds[0]:
            plot_curves(history, options.output / "curves.png")
    write_json(options.output / "learning.json", results | {"versions": versions()})
    show(results["runs"])


def biomedclip(*arguments: Any) -> None:
    subprocess.run([sys.executable, "-m", "biomedclip.run_scripts.main", *map(str, arguments)], check=True)


def show(runs: Sequence[dict[str, Any]]) -> None:
    rows = []
    for run in runs:
        metrics = run["metrics"]
        cells = []
        for direction in DIRECTIONS:
            low, high = metrics[direction]["recall_at_10_interval"]
            cells.append(f"{metrics[direction]['recall_at_10']:.3f} [{low:.3f}, {high:.3f}]")
        chance = min(1.0, 10 * metrics["chance_at_1"])
        rows.append((f"seed {run['seed']}", *cells, chance, f"{run['losses'][0]:.2f} to {run['losses'][-1]:.2f}"))
    pairs, articles = runs[0]["metrics"]["pairs"], runs[0]["metrics"]["articles"]
    say(f"Recall at 10 among {pairs:,} pairs of {articles:,} held-out articles [95 % interval over articles]")
    show_table("", rows, ["", *(name.replace("_", " ") for name in DIRECTIONS), "chance", "training loss"])
    for direction in DIRECTIONS:
        lows = [run["metrics"][direction]["recall_at_10_interval"][0] for run in runs]
        above = sum(low > 10 * run["metrics"]["chance_at_1"] for low, run in zip(lows, runs, strict=True))
        say(f"{direction.replace('_', ' ')}: the interval lies above chance in {above} of {len(runs)} runs")


if __name__ == "__main__":
    main()

"""How metrics change on corrupted images, and with paraphrased prompts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from biomedclip.processing import benchmarks
from biomedclip.processing.images.corruptions import (
    STRENGTHS,
    CorruptedImages,
    corruption_names,
    corruptions_version,
    find_corruption,
)
from biomedclip.processing.images.findings import FindingImages
from biomedclip.processing.images.labeled import LabeledImages

from ..cli.plots import plot_robustness
from ..cli.reporting import UNDEFINED, say, show_table
from .features import Features, FeatureStore
from .findings.metrics import finding_curves, mean_auroc
from .run import Run
from .statistics.bootstrap import MIN_USABLE, bootstrap_interval, bootstrap_weights, percentile_interval
from .statistics.exact_intervals import exact_interval


ALL = "all"  # all corruptions
PLOT = "robustness.png"
Score = Callable[[torch.Tensor], np.ndarray]  # scores of features
Compared = tuple[float | None, float | None, list[float] | None]  # clean, corrupted, interval of the drop
Scored = tuple[np.ndarray, Sequence[int]]  # scores, and the rows of the data that they belong to


def chosen_corruptions(names: Sequence[str]) -> list[str]:
    """Return the corruptions that `--corruptions` names, or all. Raise `ValueError` for an unknown name."""
    if list(names) == [ALL]:
        return corruption_names()
    return list(dict.fromkeys(find_corruption(name).name for name in names))


@dataclass(frozen=True)
class CorruptedFeatures:
    """Functions that read the stored features of corrupted images, by corruption and strength.

    They are read one at a time, because those of all corruptions together take a lot of memory.
    """

    features: Mapping[tuple[str, int], Callable[[], Features]]

    @classmethod
    def of(
        cls, store: FeatureStore, images: Any, fingerprint: str, options: Any, *, features: str = "embeds"
    ) -> "CorruptedFeatures":
        """Embed the images with each of the chosen corruptions. All processes must call this."""
        found = {}
        for name in chosen_corruptions(options.corruptions):
            for strength in range(1, STRENGTHS + 1):
                corrupted = CorruptedImages(images.images, images.names, name, strength, options.seed)
                key = f"{fingerprint}, {name} {strength}, corruptions {corruptions_version()}, seed {options.seed}"
                found[name, strength] = store.stored_images(corrupted, images.names, key, features=features)
        return cls(found)

    def scored(self, score: Score) -> dict[tuple[str, int], Scored]:
        """Return the scores of all images, and their rows."""
        return {key: _scored(read(), score) for key, read in self.features.items()}

    def measure(
        self, run: Run, images: LabeledImages | FindingImages, classes: Sequence[str], clean: Scored, score: Score
    ) -> dict[str, Any]:
        """Return the entry `robustness` of the metrics and show it, or nothing without corruptions.

        For the other arguments, see [`measure_robustness`].
        """
        if not self.features:
            return {}
        found = measure_robustness(images, classes, clean, self.scored(score), seed=run.options.seed)
        show_robustness(found, run.output_dir)
        return {"robustness": found}


def _scored(features: Features, score: Score) -> Scored:
    return score(features.embeds), features.rows.tolist()


def measure_robustness(
    images: LabeledImages | FindingImages,
    classes: Sequence[str],
    clean: Scored,
    corrupted: Mapping[tuple[str, int], Scored],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure how the metric drops on corrupted images.

    The metric is the accuracy, or the mean AUROC for several findings. The interval of a drop is that of the paired
    difference: each bootstrap sample draws the same groups for both.

    Args:
        images: All images of the data, with labels or findings.
        classes: The classes or findings, in the order of the scores.
        clean: Scores `(images, classes)` without corruption, and their rows.
        corrupted: Scores and rows by corruption and strength.
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.

    Returns:
        `metric`, its value `clean`, the value `mean` over all corruptions and strengths, and `corruptions`: for each
        strength the value, the `drop` and its 95 % interval.
    """
    several = isinstance(images, FindingImages)
    metric = "auroc" if several else "accuracy"
    compare: Callable[..., Compared] = _compare_auroc if several else _compare_accuracy
    found: dict[str, list[dict[str, Any]]] = {}
    values = []
    for (name, strength), scored in corrupted.items():
        rows = sorted(set(clean[1]) & set(scored[1]))
        of_rows = [scores[[place[row] for row in rows]] for scores, place in (_placed(clean), _placed(scored))]
        before, after, interval = compare(images.select(rows), classes, *of_rows, resamples=resamples, seed=seed)
        drop = None if before is None or after is None else before - after
        entry = {"strength": strength, "value": find_corruption(name).strengths[strength - 1], metric: after}
        found.setdefault(name, []).append(entry | {"drop": drop, "drop_interval": interval})
        values += [after] if after is not None else []
    whole, _, _ = compare(images.select(clean[1]), classes, clean[0], clean[0], resamples=0, seed=seed)
    return {
        "metric": metric,
        "clean": whole,
        "mean": float(np.mean(values)) if values else None,
        "version": corruptions_version(),
        "corruptions": found,
    }


def _placed(scored: Scored) -> tuple[np.ndarray, dict[int, int]]:
    return scored[0], {row: place for place, row in enumerate(scored[1])}


def _compare_accuracy(
    images: LabeledImages, classes: Sequence[str], before: np.ndarray, after: np.ndarray, *, resamples: int, seed: int
) -> Compared:
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        return None, None, None
    number_of = {name: number for number, name in enumerate(classes)}
    truth = np.array([number_of[label] for label in images.labels])
    hits = [(scores.argmax(axis=1) == truth).astype(float) for scores in (before, after)]
    groups = images.groups if images.groups is not None else np.arange(len(truth))
    change = hits[0] - hits[1]
    interval = bootstrap_interval(change, groups, seed=seed, resamples=resamples) if resamples else None
    if interval is not None and not change.any():  # no answer changes in any bootstrap sample
        most = exact_interval(0, len(np.unique(np.asarray(groups))))[1]
        interval = [-most, most]
    return float(hits[0].mean()), float(hits[1].mean()), interval


def _compare_auroc(
    images: FindingImages, classes: Sequence[str], before: np.ndarray, after: np.ndarray, *, resamples: int, seed: int
) -> Compared:
    known = np.isfinite(before).all(axis=0) & np.isfinite(after).all(axis=0)
    curves = [finding_curves(scores[:, known], images.targets[:, known]) for scores in (before, after)]
    ones = np.ones(len(images))
    values = [mean_auroc(each, ones) for each in curves]
    if not resamples or None in values:
        return values[0], values[1], None
    drops = []
    groups = images.groups if images.groups is not None else np.arange(len(images))
    for weights in bootstrap_weights(groups, seed=seed, resamples=resamples):
        drawn = [mean_auroc(each, weights) for each in curves]
        if drawn[0] is not None and drawn[1] is not None:
            drops.append(drawn[0] - drawn[1])
    interval = percentile_interval(drops) if len(drops) >= max(1, MIN_USABLE * resamples) else None
    return values[0], values[1], interval


def show_robustness(found: Mapping[str, Any], output_dir: Path) -> None:
    """Print the table of the metric at each strength, and write the plot. The table fits on 80 columns."""
    metric = found["metric"]
    rows = []
    for name, entries in found["corruptions"].items():
        last = entries[-1]
        interval = last["drop_interval"]
        ends = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""
        drop = UNDEFINED if last["drop"] is None else f"{100 * last['drop']:.1f}{ends}"
        rows.append((name, *(_percent(entry[metric]) for entry in entries), drop))
    columns = ["corruption", *map(str, range(1, STRENGTHS + 1)), f"drop at {STRENGTHS}, 95 % interval"]
    title = "AUROC" if metric == "auroc" else metric.capitalize()
    show_table(f"{title} in % by strength; without corruption {_percent(found['clean'])}", rows, columns)
    output_dir.mkdir(parents=True, exist_ok=True)
    plot_robustness(found, output_dir / PLOT)
    say(f"Plot in {output_dir / PLOT}")


def _percent(value: float | None) -> str:
    return UNDEFINED if value is None else f"{100 * value:.1f}"


@lru_cache(maxsize=1)
def paraphrases() -> dict[str, Any]:
    """Return the content of `paraphrases.yaml`: `templates`, and `pairs` of a positive and a negative template."""
    file = Path(benchmarks.__file__).parent / "paraphrases.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def summarize_paraphrases(metric: str, values: Mapping[str, float | None]) -> dict[str, Any]:
    """Return the metric of each paraphrase, and their smallest, median and largest value and standard deviation."""
    known = [value for value in values.values() if value is not None]
    spread = {"smallest": min(known), "median": float(np.median(known)), "largest": max(known)} if known else {}
    deviation = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return {"metric": metric, "version": paraphrases()["version"], **spread, "sd": deviation, "values": dict(values)}


def show_paraphrases(found: Mapping[str, Any]) -> None:
    """Print the metric of each paraphrase, the best one first."""
    ranked = sorted(found["values"].items(), key=lambda item: -(item[1] if item[1] is not None else -1))
    rows: list[tuple[str, Any]] = [(name, UNDEFINED if value is None else f"{value:.3f}") for name, value in ranked]
    title = "AUROC" if found["metric"] == "auroc" else found["metric"]
    spread = f", from {found['smallest']:.3f} to {found['largest']:.3f}" if "smallest" in found else ""
    show_table(f"Prompt sensitivity{spread}", rows, ["prompt", title])

"""Few-shot learning: classify test images with heads that are fitted on a few images of each class."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from biomedclip.processing.benchmarks import ClassificationBenchmark
from biomedclip.processing.benchmarks.facts import published_few_shot

from ...cli.plots import plot_few_shot
from ..linear_probe import read_learned
from ..robustness import PLOT as CORRUPTED_PLOT
from ..robustness import CorruptedFeatures
from ..run import Run, note_if_few_drawn
from ..zero_shot import classification_metrics, data_of, notes_on_class_names, predictions_of
from .context import ContextEncoder
from .finished import FITS, FinishedFits
from .learner import ALL, BASE, MEASURED, NOVEL, Corrupted, Learner, Part, corrupted_answers, embedded_images, halves_of
from .methods import TEXT_METHODS
from .options import DRAWS, ZERO_SHOT
from .predictions import Key, prediction_table, written_fits
from .robustness import measure_corrupted, show_corrupted
from .summary import PARTS, harmonic_values, show_few_shot, summarize


PLOT = "few_shot.png"
NO_VALIDATION = (
    "there are no validation images, on which the settings of the methods are chosen. Few-shot learning needs at least "
    "two training images of a class. Add images, or a folder validation."
)


@dataclass(frozen=True)
class FewShotData:
    """The splits of a benchmark. Without a validation split, `splits` has no `validation`."""

    splits: dict[str, ClassificationBenchmark]
    split: str  # the measured one
    notes: list[str]

    @property
    def test(self) -> ClassificationBenchmark:
        """Return the measured split."""
        return self.splits[self.split]


def read_few_shot(options: Any) -> FewShotData:
    """Read the splits of a benchmark, with the chosen prompts.

    Raise `ValueError` as [`read_learned`] does, or if there are no test images, too few classes for `base_to_novel`, or
    fewer training images than shots in all classes.
    """
    where = f"--data {options.data}"
    splits, notes = read_learned(options, with_validation=options.split != "validation", prompts=options.prompts)
    if options.templates:
        splits = {split: replace(read, templates=list(options.templates)) for split, read in splits.items()}
    if "validation" in splits and options.split != "validation" and not len(splits["validation"]):
        del splits["validation"]  # nothing could be held out
    test, train = splits[options.split], splits["train"]
    if not len(test):
        raise ValueError(
            f"{where}: no image could be held out for the {options.split} split, because each class has a single "
            f"image. Add images, or a folder {options.split}."
        )
    if options.base_to_novel and len(test.classes) < 4:
        raise ValueError(
            f"{where}: --base-to-novel needs two base and two novel classes, but there are {len(test.classes)} classes."
        )
    if options.base_to_novel:
        for half in halves_of(test.classes):
            if not set(half) & set(test.images.labels):
                raise ValueError(
                    f"{where}: --base-to-novel needs test images of both halves of the classes, but there is none of "
                    f"{', '.join(half)}. Add images, or omit --base-to-novel."
                )
    counts = Counter(train.images.labels)
    if options.methods != [ZERO_SHOT]:
        label, images = counts.most_common(1)[0]
        largest, also = images, ""
        if "validation" not in splits or options.split == "validation":
            if images == 1:
                raise ValueError(f"{where}: {NO_VALIDATION}")
            largest -= images // 2
            also = f", of which {images // 2:,} are for validation"
        if too_many := [str(shots) for shots in sorted(options.shots) if shots > largest]:
            raise ValueError(
                f"{where}: --shots {' '.join(too_many)}: no class has as many training images. The largest, {label!r}, "
                f"has {images:,}{also}. Pass at most {largest:,} to --shots."
            )
    return FewShotData(splits, options.split, notes)


def evaluate_few_shot(run: Run) -> dict[str, Any] | None:
    """Evaluate few-shot learning. The first process writes and returns the results."""
    options, data = run.options, run.data
    encoder, store = run.load()
    if not hasattr(encoder.model, "get_text_features") and set(options.methods) & set(TEXT_METHODS):
        raise ValueError(
            f"{encoder.name} has no text tower, which {', '.join(TEXT_METHODS)} need. Omit them from --methods."
        )
    if "coop" in options.methods:  # raises `ValueError` for encoders and prompts that it cannot learn
        ContextEncoder(encoder, data.test.class_names, data.test.templates, getattr(options, "max_length", None))
    features = {split: store.images(b.images.images, b.images.names, b.fingerprint) for split, b in data.splits.items()}
    corrupted = CorruptedFeatures.of(store, data.test.images, data.test.fingerprint, options)
    if not PartialState().is_main_process:
        return None
    embedded = {split: embedded_images(data.splits[split], features[split], split) for split in data.splits}
    learner = Learner(run, encoder, embedded)
    draws = options.draws or DRAWS
    seeds = range(options.seed, options.seed + draws)
    drawn = learner.draw_all(sorted(options.shots), seeds) if options.methods != [ZERO_SHOT] else {}
    digests = {key: learner.digest(draw) for key, draw in drawn.items()}
    notes = [*data.notes, *learner.notes(drawn), *_notes_on_intervals(digests, draws)]
    notes += notes_on_class_names(data.test) if options.methods != ["linear-probe"] else []
    wanted: list[Key] = [
        (method, shots, seed)
        for method in options.methods
        for shots, seed in ([(0, options.seed)] if method == ZERO_SHOT else drawn)
    ]
    test = embedded[data.split]
    written, what = written_fits(wanted, len(test.labels), len(data.test.classes))
    fitted = _fit_all(run, learner, wanted, written, drawn, digests, corrupted.features)
    metrics: dict[str, Any] = {
        "by_method": fitted.summary(PARTS if options.base_to_novel else MEASURED),
        "chance": 1 / len(data.test.classes),
        "most_frequent_class": max(Counter(test.labels.tolist()).values()) / len(test.labels),
        "images": len(test.labels),
        "classes": list(data.test.classes),
    }
    if options.base_to_novel:
        base, novel = learner.halves_of_classes()
        metrics |= {"base_classes": [data.test.classes[number] for number in base]}
        metrics |= {"novel_classes": [data.test.classes[number] for number in novel]}
        del metrics["chance"], metrics["most_frequent_class"]
    show_few_shot(metrics)
    plot_few_shot(metrics, run.output_dir / PLOT)
    if corrupted.features:
        at_most = [fitted.entries[key] for key in wanted if key[1] in (0, max(key[1] for key in wanted))]
        metrics["robustness"] = measure_corrupted(
            at_most, fitted.array, list(corrupted.features), test.labels, test.images.groups
        )
        show_corrupted(metrics["robustness"], run.output_dir)
    published = published_few_shot(options.benchmark, options.shots, base_to_novel=options.base_to_novel)
    damaged = [entry for split in data.splits for entry in features[split].damaged]
    return run.write(
        encoder,
        data=data_of(
            data.test, len(test.labels), damaged, [*notes, *note_if_few_drawn(len(test.labels), test.images.groups)]
        ),
        metrics=metrics,
        paper={},
        paper_source="",
        published=published,
        predictions=prediction_table(
            [fitted.entries[key] for key in written],
            lambda fit, part: fitted.array(fit, f"scores {part}"),
            learner.parts,
            test.images,
            data.test.classes,
        ),
        settings={
            **{name: list(getattr(options, name)) for name in ("methods", "shots")},
            "draws": draws,
            "base_to_novel": options.base_to_novel,
            "find_leaks": options.find_leaks if drawn else None,
            "predictions": what,
            "templates": data.test.templates,
            "class_names": dict(zip(data.test.classes, data.test.class_names, strict=True)),
        },
        also=f", plot in {run.output_dir / PLOT}",
        report=partial(_write_report, fitted=fitted, folder=run.output_dir),
    )


def _write_report(path: Path, results: Mapping[str, Any], *, fitted: "_Fitted", folder: Path) -> None:
    """Write the page of `--report`, with the first draw of the method that is the best at the most shots."""
    from ..report.few_shot import write_few_shot_report  # imports scikit-learn

    benchmark, test = fitted.learner.benchmark, fitted.learner.test
    most = max(shots for _, shots, _ in fitted.entries)
    name = PARTS[-1] if "base_classes" in results["metrics"] else "accuracy"
    by_method = results["metrics"]["by_method"]
    means = {method: by_shots[str(most)][name] for method, by_shots in by_method.items() if str(most) in by_shots}
    best = max(means, key=lambda method: -1 if means[method] is None else means[method])
    shown = next(fit for (method, shots, _), fit in fitted.entries.items() if (method, shots) == (best, most))
    parts = {}
    for part in fitted.learner.parts:
        images = test.images.select(part.rows)
        names = [benchmark.classes[number] for number in part.classes]
        scores = fitted.array(shown, f"scores {part.name}")
        positive = benchmark.positive if benchmark.positive in names else None
        metrics = classification_metrics(torch.from_numpy(scores), images.labels, names, positive=positive, resamples=0)
        parts[part.name] = predictions_of(images, scores, names), metrics
    plots = {"Accuracy by training images": folder / PLOT}
    plots |= {"Corrupted test images": folder / CORRUPTED_PLOT} if "robustness" in results["metrics"] else {}
    write_few_shot_report(path, results, shown=shown, parts=parts, plots=plots)


def _notes_on_intervals(digests: Mapping[tuple[int, int], str], draws: int) -> list[str]:
    """Return notes on what the intervals do not cover, by the hash of each draw."""
    if not digests:
        return []
    notes = []
    if draws == 1:
        notes.append(
            "With a single draw, the intervals cover the choice of the test images, but not that of the training "
            "images. Pass --draws 5."
        )
    elif draws == 2:
        notes.append("With two draws, the intervals are very wide if the draws differ. Pass --draws 5.")
    alike = []
    for shots in sorted({shots for shots, _ in digests}):
        different = {digest for (count, _), digest in digests.items() if count == shots}
        alike += [f"{len(different)} of {draws} with {shots} shots"] if len(different) < draws else []
    if alike:
        notes.append(
            f"Some draws have the same images, because there are few ({'; '.join(alike)} differ). Their intervals are "
            "too narrow."
        )
    return notes


@dataclass(frozen=True)
class _Fitted:
    """The finished fits of an evaluation, with their predictions."""

    entries: Mapping[Key, dict[str, Any]]
    fits: FinishedFits
    learner: Learner

    def array(self, fit: Mapping[str, Any], name: str) -> np.ndarray:
        """Return a stored array of a fit."""
        return self.fits.arrays(fit, [name])[name]

    def summary(self, metrics: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the means over the draws, see [`summarize`]."""
        parts = {part.name: part for part in self.learner.parts}
        of_metric = {"accuracy": [ALL], "base_accuracy": [BASE], "novel_accuracy": [NOVEL]}
        of_metric["harmonic_mean_accuracy"] = [BASE, NOVEL]

        def right(fit: Mapping[str, Any], part: Part) -> np.ndarray:
            truth = self.learner.test.of(part.rows, part.classes).labels.numpy()
            return self.array(fit, f"answers {part.name}") == truth

        def values(fit: Mapping[str, Any], metric: str) -> np.ndarray | None:
            found = [right(fit, parts[name]) for name in of_metric.get(metric, [])]
            return harmonic_values(*found) if len(found) == 2 else found[0].astype(float) if found else None

        def groups(metric: str) -> list[str] | None:
            all_groups = self.learner.test.images.groups
            rows = [row for name in of_metric[metric] for row in parts[name].rows]
            return None if all_groups is None else [all_groups[row] for row in rows]

        return summarize(list(self.entries.values()), metrics, values, groups)


def _fit_all(
    run: Run,
    learner: Learner,
    wanted: Sequence[Key],
    written: Sequence[Key],
    drawn: Mapping[tuple[int, int], Any],
    digests: Mapping[tuple[int, int], str],
    corrupted: Corrupted,
) -> _Fitted:
    """Fit and measure what an earlier run has not finished.

    The scores of the fits `written` are kept. Corrupted images are measured with the largest number of shots.
    """
    fits = FinishedFits(Path(run.output_dir) / FITS, learner.settings())
    largest = max(shots for _, shots, _ in wanted)
    entries: dict[Key, dict[str, Any]] = {}
    for key in tqdm(wanted, desc="Fits", unit="fit", dynamic_ncols=True):
        method, shots, seed = key
        digest, keep = digests.get((shots, seed)), key in written
        of_fit = corrupted if shots in (0, largest) else {}
        needed = [corrupted_answers(*corruption) for corruption in of_fit]
        needed += [
            f"{kind} {part.name}" for part in learner.parts for kind in ("answers", *(["scores"] if keep else []))
        ]
        found = fits.get(method, shots, seed, digest, needed)
        if found is None:
            found, arrays = learner.measure(
                method, shots, seed, drawn.get((shots, seed)), keep_scores=keep, corrupted=of_fit
            )
            found["drawn"] = digest
            fits.add(found, arrays)
        entries[key] = found
    return _Fitted(entries, fits, learner)

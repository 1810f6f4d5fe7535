"""Zero-shot classification of images with several findings, by pairs of a positive and a negative prompt."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from scipy.special import expit

from biomedclip import ZeroShotClassifier
from biomedclip.processing.benchmarks.findings import FindingsBenchmark, Pair, load_findings
from biomedclip.processing.images.findings import FindingImages, check_some_readable
from biomedclip.processing.images.labeled import MissingSplit

from ...classification.calibrations import Calibration
from ...embedding.encoders import label_embeds
from ..decision_options import given_decisions
from ..dual_encoders import DualEncoder
from ..embedded import embed_splits
from ..leaks import validation_leaks
from ..predictions import Predictions
from ..robustness import paraphrases, show_paraphrases, summarize_paraphrases
from ..run import Run, note_if_few_drawn
from ..zero_shot import data_of
from .decisions import DecidedFindings, ScoredFindings, decide_findings, notes_on_findings, show_finding_decisions
from .metrics import measure_findings, show_findings
from .subgroups import measure_finding_subgroups, show_finding_subgroups


# Options of data with several findings. They are keyword arguments of `read_finding_splits`.
OF_FINDINGS = (
    *("label_columns", "label_separator", "uncertain", "blank"),
    *("image_column", "image_root", "group_column", "split_column", "subgroup_column"),
)
IGNORED = "ignored"  # column of the predictions


@dataclass(frozen=True)
class MeasuredFindings:
    """A split of images with several findings, and the validation split if an option needs it."""

    test: FindingsBenchmark
    validation: FindingsBenchmark | None


def given_finding_options(options: Any) -> dict[str, Any]:
    """Return the options of data with several findings that have a value."""
    values = {name: getattr(options, name, None) for name in OF_FINDINGS}
    return {name: value for name, value in values.items() if value not in (None, [])}


def read_findings(options: Any) -> MeasuredFindings:
    """Read the images of a split with their findings, and the validation split if an option needs it.

    Raise `ValueError` if no image of a split can be read.
    """
    splits = load_with_validation(options, prompts=options.prompts, seed=options.seed)
    for split, benchmark in splits.items():
        check_some_readable(benchmark.images, f"--data {options.data}, {split} split")
    return MeasuredFindings(splits[options.split], splits.get("validation") if given_decisions(options) else None)


def load_with_validation(options: Any, *others: str, **also: Any) -> dict[str, FindingsBenchmark]:
    """Load the measured split, other splits, and the validation split if an option needs it.

    `also` are other arguments of [`load_findings`]. Raise `ValueError` if a split does not exist. The message names the
    option if it is the validation split.
    """
    columns = given_finding_options(options)
    given = given_decisions(options)
    splits = [*others, *(["validation"] if given else []), options.split]
    try:
        return load_findings(options.data, splits=splits, **columns, **also)
    except MissingSplit as error:
        if given and error.split == "validation":
            raise ValueError(f"--{given[0]} needs a validation split. {error}") from error
        raise


def evaluate_findings(run: Run) -> dict[str, Any] | None:
    """Evaluate zero-shot classification of findings. The first process writes and returns the results."""
    options, benchmark, validation = run.options, run.data.test, run.data.validation
    encoder, store = run.load()
    embedded = embed_splits(store, benchmark, {"validation": validation}, options)
    if not PartialState().is_main_process:
        return None
    usable, embeds, own = embedded.test.images, embedded.test.embeds, embedded.validation

    def score(embeds: torch.Tensor, prompts: Mapping[str, Pair] = benchmark.prompts) -> np.ndarray:
        return score_pairs(encoder, embeds, prompts, max_length=options.max_length)

    scores = score(embeds)
    fitted_on = None
    if own is not None:
        fitted_on = ScoredFindings(score(own.embeds), own.images.targets, own.images.groups)
    metrics = measure_findings(scores, usable.targets, usable.findings, groups=usable.groups, seed=options.seed)
    show_findings(f"Zero-shot classification of findings, {len(usable):,} images", metrics)
    concluded = conclude(options, usable, scores, fitted_on, zero_shot=True)
    metrics |= embedded.robustness(run, usable.findings, scores, score)
    if options.prompt_sensitivity:
        values = {}
        for positive, negative in paraphrases()["pairs"]:
            found = score(embeds, with_templates(benchmark.prompts, positive, negative))
            measured = measure_findings(found, usable.targets, usable.findings, resamples=0)
            values[f"{positive} / {negative}"] = measured["auroc"]
        metrics["prompt_sensitivity"] = summarize_paraphrases("auroc", values)
        show_paraphrases(metrics["prompt_sensitivity"])
    shared = validation_leaks(validation, benchmark, options)
    return run.write(
        encoder,
        data=data_of(
            benchmark,
            len(usable),
            embedded.damaged,
            notes_of(benchmark, usable.groups) + concluded.notes + shared.notes,
        )
        | shared.data,
        metrics=metrics,
        paper={},
        paper_source="",
        settings=given_finding_options(options)
        | {
            "prompt_set": benchmark.prompt_set,
            "prompts": {name: {"positive": pair[0], "negative": pair[1]} for name, pair in benchmark.prompts.items()},
        },
        **concluded.results,
    )


@dataclass(frozen=True)
class Concluded:
    """Metrics, decisions and predictions from the scores of findings.

    Args:
        decided: The calibration of each finding and the measured decisions.
        results: `predictions`, `subgroups` and `decisions` of [`Run.write`].
        notes: Notes on what was fitted or read.
    """

    decided: DecidedFindings
    results: dict[str, Any]
    notes: list[str]


def conclude(
    options: Any,
    images: FindingImages,
    scores: np.ndarray,
    validation: ScoredFindings | None,
    *,
    applied: Calibration | None = None,
    zero_shot: bool = False,
) -> Concluded:
    """Decide by log-odds, measure and print decisions and subgroups, and make the predictions.

    Args:
        options: Options of the run.
        images: The images that could be read.
        scores: Their log-odds `(images, findings)`.
        validation: The validation images, if an option needs them.
        applied: An earlier calibration, with the same findings.
        zero_shot: Whether a note states that decisions use labels.
    """
    test = ScoredFindings(scores, images.targets, images.groups)
    decided = decide_findings(test, validation, images.findings, options, applied=applied)
    show_finding_decisions(decided.results)
    subgroups = measure_finding_subgroups(images, scores, seed=options.seed)
    show_finding_subgroups(subgroups)
    results = {
        "predictions": finding_predictions(images, decided.calibrated(scores)),
        "subgroups": subgroups,
        "decisions": decided.results,
    }
    return Concluded(
        decided, results, notes_on_findings(validation, images.findings, options, decided, zero_shot=zero_shot)
    )


def finding_predictions(images: FindingImages, scores: np.ndarray) -> Predictions:
    """Return the predictions of images with several findings by their log-odds, of shape `(images, findings)`.

    Findings with a probability of 0.5 or more are predicted. The column `ignored` has the findings whose label is
    ignored, separated by `|`.
    """
    probabilities = expit(scores)
    names = np.array(images.findings, dtype=object)
    finite = np.isfinite(scores).any(axis=1)
    predicted = [names[row >= 0].tolist() if known else None for row, known in zip(scores, finite, strict=True)]
    return Predictions(
        files=images.names,
        true=[names[row == 1].tolist() for row in images.targets],
        predicted=predicted,
        probabilities=probabilities,
        classes=images.findings,
        groups=images.groups,
        columns={IGNORED: ["|".join(names[np.isnan(row)]) for row in images.targets], **images.columns},
        images=images.images,
        targets=images.targets,
    )


def notes_of(benchmark: FindingsBenchmark, groups: list[str] | None) -> list[str]:
    """Return notes on the number of groups or images that the intervals are based on."""
    if groups is None:
        note = (
            "Without group_column, the intervals draw single images. Several images of a patient make them too narrow."
        )
        return [*note_if_few_drawn(len(benchmark.images), None), note.replace("group_column", "--group-column")]
    return note_if_few_drawn(len(groups), groups)


def with_templates(prompts: Mapping[str, Pair], positive: str, negative: str) -> dict[str, Pair]:
    """Return prompts of the same findings from one positive and one negative template. Names have spaces."""
    names = {finding: finding.replace("_", " ") for finding in prompts}
    return {
        finding: ([positive.replace("{}", name)], [negative.replace("{}", name)]) for finding, name in names.items()
    }


def score_pairs(
    encoder: DualEncoder, image_embeds: torch.Tensor, prompts: Mapping[str, Pair], *, max_length: int | None = None
) -> np.ndarray:
    """Return the log-odds of each finding, `(images, findings)`.

    They are the difference between the logits of the positive and of the negative prompts, so that the sigmoid is the
    softmax over the pair. The embedding of several prompts is their normalized mean.
    """
    sides = [texts for pair in prompts.values() for texts in pair]
    with encoder.precise():
        flat = [text for texts in sides for text in texts]
        embeds = ZeroShotClassifier(encoder.model, encoder.processor, flat, "{}", max_length=max_length).class_embeds
    logits = (label_embeds(embeds, sides) @ image_embeds.t()).t() * encoder.logit_scale
    return (logits[:, 0::2] - logits[:, 1::2]).double().numpy()

"""Evaluate image classifiers that `biomedclip train --task image-classification` wrote, or others of transformers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import PartialState

from biomedclip.processing.benchmarks import ClassificationBenchmark
from biomedclip.processing.images.labeled import ALL_ARE_TEST, check_readable

from ..classification.calibrations import load_calibration
from ..classification.classifiers import check_fine_tuned, load_classifier_model
from ..classification.labels import check_known
from .dual_encoders import DualEncoder
from .embedded import embed_splits
from .features import FEATURES, FeatureStore
from .leaks import LEAKS_UNKNOWN, look_for_seen, report_leaks, validation_leaks
from .reliability import decide, notes_on, own_calibration, scored, show_decisions, write_calibration
from .run import Run, note_if_few_drawn
from .zero_shot import (
    classification_metrics,
    data_of,
    fitted_source,
    predictions_of,
    read_labeled,
    read_validation,
    show_classification,
    subgroups_of,
)


TASK = "image-classification"


@dataclass(frozen=True)
class LabeledTest:
    """A split of labeled images, and the labels of each classifier by its name.

    `validation` is the validation split if an option needs it, and `train` the training split if there is one.
    `notes` state why there is no training split.
    """

    test: ClassificationBenchmark
    validation: ClassificationBenchmark | None
    train: ClassificationBenchmark | None
    labels: Mapping[str, list[str]]
    notes: Sequence[str] = ()


class FineTunedClassifier(DualEncoder):
    """A classifier whose features are its logits, so that a [`FeatureStore`] computes and keeps them."""

    @torch.no_grad()
    def embed_pixels(self, pixel_values: torch.Tensor, features: str = "logits") -> torch.Tensor:
        """Return the logits of pixels `(images, 3, height, width)`, in float32 on the CPU."""
        with self.precise():
            return self.model(pixel_values=pixel_values.to(self.model.device)).logits.float().cpu()


def read_classified(options: Any) -> LabeledTest:
    """Check the classifiers, and read the images of a split.

    Raises:
        FileNotFoundError: If the images, a model or a file of it do not exist.
        ValueError: If a model is not an image classifier, or the label of an image is not one of its labels.
    """
    labels = {name: check_fine_tuned(name, several=False) for name in options.model}
    check_calibrations(options, several=False)
    test = read_labeled(options, options.split)
    where = f"--data {options.data}"
    for name, known in labels.items():
        for label in sorted(set(test.images.labels)):
            check_known(label, known, f"{where}, {options.split} split, labels of --model {name}")
    check_readable(test.images, where)
    train, notes = None, []
    if options.find_leaks and options.split != "train":
        try:
            train = read_labeled(options, "train")
        except (FileNotFoundError, ValueError) as error:
            if ALL_ARE_TEST not in test.notes:
                notes.append(f"{LEAKS_UNKNOWN} {error}")
    known_to_all = [label for label in next(iter(labels.values())) if all(label in known for known in labels.values())]
    return LabeledTest(test, read_validation(options, known_to_all), train, labels, notes)


def check_calibrations(options: Any, *, several: bool) -> None:
    """Raise `ValueError` if the calibration of a model is needed and faulty, or not that of `several` findings."""
    for name in options.model:
        if not options.calibrate:
            load_calibration(None, name).check_kind(name, several)


def load_fine_tuned_classifier(name: str, precision: str) -> FineTunedClassifier:
    """Load a classifier, or the adapter of one, on the device of this process."""
    model, image_processor = load_classifier_model(name)
    processor = SimpleNamespace(image_processor=image_processor, tokenizer=None)
    return FineTunedClassifier(
        name, model.config.model_type, model.to(PartialState().device), processor, precision=precision
    )


def load_classifier(run: Run) -> tuple[FineTunedClassifier, FeatureStore]:
    """Return the classifier of a run and the store of its logits."""
    options = run.options
    classifier = load_fine_tuned_classifier(run.model, options.precision)
    folder = Path(options.features_dir or Path(options.output_dir) / FEATURES)
    return classifier, FeatureStore(classifier, folder, batch_size=options.batch_size, workers=options.workers)


def evaluate_image_classification(run: Run) -> dict[str, Any] | None:
    """Evaluate a fine-tuned classifier. The first process writes and returns the results."""
    options, test = run.options, run.data.test
    labels: list[str] = run.data.labels[run.model]
    classifier, store = load_classifier(run)
    validation = run.data.validation
    embedded = embed_splits(store, test, {"validation": validation}, options, features="logits")
    if not PartialState().is_main_process:
        return None
    usable, own = embedded.test.images, embedded.validation
    of_test, fitted_on = scored(embedded.test.embeds, usable.labels, labels, usable.groups), None
    if own is not None:
        fitted_on = scored(own.embeds, own.images.labels, labels, own.images.groups)
    applied, applied_notes = None, list[str]()
    if not options.calibrate:
        applied, applied_notes = own_calibration(run.model, labels, classifier.weights, test.fingerprint)
    decided = decide(of_test, fitted_on, labels, options, positive=test.positive, applied=applied)
    scores = torch.from_numpy(of_test.logits / decided.temperature)
    metrics = classification_metrics(
        scores, usable.labels, labels, positive=test.positive, groups=usable.groups, seed=options.seed
    )
    show_classification(metrics, "Image classification")
    show_decisions(decided.results)
    metrics |= embedded.robustness(run, labels, of_test.logits, lambda embeds: embeds.numpy())
    seen = look_for_seen(run.model, usable.images, None if own is None else own.images.images, options)
    if fitted_on is not None:
        folders = [run.output_dir, *([Path(run.model)] if Path(run.model).is_dir() else [])]
        source = fitted_source(validation, fitted_on) | seen.fitted_on
        write_calibration(decided, folders, labels, classifier.weights, source)
    leaks = report_leaks(run.data.train, test)
    notes = [*_absent(labels, usable.labels, options.split), *note_if_few_drawn(len(usable), usable.groups)]
    notes += [*run.data.notes, *applied_notes, *notes_on(fitted_on, options, decided)]
    shared = validation_leaks(validation, test, options)
    notes += [*seen.notes, *shared.notes]
    return run.write(
        classifier,
        data=data_of(test, len(usable), embedded.damaged, notes) | {"leaks": leaks, **seen.data, **shared.data},
        metrics=metrics,
        paper={},
        paper_source="",
        settings={"labels": labels, "positive": test.positive},
        predictions=predictions_of(usable, scores.numpy(), labels, sets=decided.sets),
        subgroups=subgroups_of(usable, scores, labels, test.positive, options.seed),
        decisions=decided.results,
    )


def _absent(labels: Sequence[str], found: Sequence[str], split: str) -> list[str]:
    absent = sorted(set(labels) - set(found))
    return [f"No image of the {split} split is of the class {', '.join(map(repr, absent))}."] if absent else []

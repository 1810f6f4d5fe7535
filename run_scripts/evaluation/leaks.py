"""Look for test images among the training and validation images, and say how many there are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from biomedclip.processing.benchmarks.leaks import find_leaks
from biomedclip.processing.images.labeled import shared_groups

from ..classification.seen_images import (
    SEEN_UNKNOWN,
    count_seen_images,
    notes_on_seen,
    notes_on_seen_validation,
)
from ..cli.reporting import say
from .decision_options import given_decisions


LEAKS_UNKNOWN = "Leaks are unknown without training images."  # note, followed by the reason


@dataclass(frozen=True)
class Found:
    """What was found: fields of `data` in `results.json`, and notes."""

    data: dict[str, Any]
    notes: list[str]


def report_leaks(train: Any, test: Any) -> dict[str, Any] | None:
    """Find and print the test images that are training images. None without a training split."""
    if train is None:
        return None
    leaks = find_leaks(train, test, progress=True).as_dict()
    if leaks["leaked"]:
        say(f"{leaks['leaked']:,} of {leaks['test_images']:,} test images are, or look like, training images.")
    return leaks


def validation_leaks(validation: Any, test: Any, options: Any) -> Found:
    """Find the test images and groups that are in the validation split on which decisions are fitted.

    Nothing is looked for without a validation split, without an option of decisions, or with `--no-find-leaks`.
    """
    if validation is None or not given_decisions(options) or not getattr(options, "find_leaks", True):
        return Found({}, [])
    groups = shared_groups({"validation": validation.images, test.split: test.images})
    notes = [note for note in groups if note not in test.notes]
    leaks = find_leaks(validation, test, progress=True).as_dict()
    leaks["validation_images"] = leaks.pop("train_images")
    leaks["examples"] = {
        reason: [{"test": pair["test"], "validation": pair["train"]} for pair in pairs]
        for reason, pairs in leaks["examples"].items()
    }
    if leaks["leaked"]:
        notes.append(
            f"Leak: {leaks['leaked']:,} of {leaks['test_images']:,} {test.split} images are, or look like, validation "
            "images, on which decisions were fitted."
        )
        say(notes[-1])
    return Found({"validation_leaks": leaks}, notes)


@dataclass(frozen=True)
class Seen:
    """How many images a classifier was trained on, by its splits. None if it is not known or not looked for."""

    test: dict[str, int] | None
    validation: dict[str, int] | None
    notes: list[str]

    @property
    def data(self) -> dict[str, Any]:
        """Return fields of `data` in `results.json`."""
        validation = {} if self.validation is None else {"validation_seen_in_training": self.validation}
        return {"seen_in_training": self.test, **validation}

    @property
    def fitted_on(self) -> dict[str, Any]:
        """Return fields of `fitted_on` in `calibration.json`."""
        return {} if self.validation is None else {"seen_in_training": self.validation}


def look_for_seen(model: str, test: Sequence[Any], validation: Sequence[Any] | None, options: Any) -> Seen:
    """Count the images on which a classifier was trained. `validation` are images on which decisions are fitted."""
    if not options.find_leaks:
        return Seen(None, None, [])
    of_test = count_seen_images(model, test)
    if of_test is None:
        return Seen(None, None, [SEEN_UNKNOWN])
    notes, of_validation = notes_on_seen(of_test, len(test)), None
    if validation is not None:
        of_validation = count_seen_images(model, validation)
        notes += notes_on_seen_validation(of_validation, len(validation))
    return Seen(of_test, of_validation, notes)

"""Images with several findings each: their targets, and the policies for uncertain and blank labels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from .errors import ImageError
from .reading import read_row_image
from .sets import LazyImages


Policy = Literal["zero", "one", "ignore"]
UNCERTAIN = get_args(Policy)
BLANK = ("zero", "ignore")
UNCERTAIN_DEFAULT, BLANK_DEFAULT = "ignore", "zero"
NO_FINDING = "no finding"  # entry of a list of findings that is empty
_UNCERTAIN_LABEL = -1.0
_VALUES = {"zero": 0.0, "one": 1.0, "ignore": math.nan}


@dataclass(frozen=True)
class FindingImages:
    """Images and the findings of each.

    Args:
        images: Images that [`read_row_image`] accepts. They are read on access.
        targets: 1 or 0 for each image and finding, `(images, findings)`. NaN is ignored in losses and metrics.
        findings: Names of the findings.
        names: Name of each image, used in messages and as a seed for its random crops.
        groups: Patient or source of each image, if known. Images of one group belong in the same split.
        notes: Notes for the user on how the images were selected and which labels were replaced.
        drawn: Whether they were drawn from the training images, because the data has no such split.
        columns: Further columns, such as the sex of the patient, with a value for each image.
    """

    images: Sequence[Any]
    targets: np.ndarray
    findings: list[str]
    names: list[str]
    groups: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    drawn: bool = False
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"image": self.images[row], "label": self.targets[row], "name": self.names[row]}

    @property
    def strata(self) -> list[str]:
        """Return a constant. Held-out splits are not stratified, because no draw is balanced for all findings."""
        return ["images"] * len(self)

    @property
    def labels_of_rows(self) -> list[list[str]]:
        """Return the known labels of each image, such as `nodule = 0`. Held-out groups have each one, if possible."""
        return [
            [f"{name} = {value:.0f}" for name, value in zip(self.findings, row, strict=True) if not math.isnan(value)]
            for row in self.targets
        ]

    def select(self, rows: Sequence[int]) -> "FindingImages":
        """Return the images of the given rows, in this order."""
        return replace(
            self,
            images=LazyImages(rows, self.images.__getitem__),
            targets=self.targets[list(rows)],
            names=[self.names[row] for row in rows],
            groups=[self.groups[row] for row in rows] if self.groups is not None else None,
            columns={name: [values[row] for row in rows] for name, values in self.columns.items()},
        )

    def with_note(self, note: str) -> "FindingImages":
        """Return the same images with an additional note."""
        return replace(self, notes=[*self.notes, note])


def label_value(value: Any, where: str) -> float:
    """Return a label of a finding: 1, 0, -1 for an uncertain label, or NaN for a blank one.

    Raises:
        ValueError: If the value is none of them. `where` describes its place.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.inf
    if math.isnan(number) or number in (0.0, 1.0, _UNCERTAIN_LABEL):
        return number
    raise ValueError(
        f"{where} is {str(value)[:100]!r}. The label of a finding must be 1, 0, -1 (uncertain) or blank. Correct it, "
        "or omit the column from label_columns."
    )


def apply_policies(labels: np.ndarray, uncertain: str, blank: str) -> np.ndarray:
    """Return targets for labels of [`label_value`]: 1 or 0, and NaN for those that are ignored.

    Args:
        labels: Labels of any shape.
        uncertain: Value of uncertain labels: `zero`, `one` or `ignore`.
        blank: Value of blank labels: `zero` or `ignore`.

    Raises:
        ValueError: If a policy is unknown.

    Example:
    ```python
    >>> import numpy as np

    >>> from biomedclip.processing.images.findings import apply_policies

    >>> apply_policies(np.array([1, 0, -1, np.nan]), uncertain="ignore", blank="zero")
    array([ 1.,  0., nan,  0.])
    ```
    """
    for name, policy, known in (("uncertain", uncertain, UNCERTAIN), ("blank", blank, BLANK)):
        if policy not in known:
            raise ValueError(f"{name}={policy!r} is unknown. Choose one of {', '.join(known)}.")
    targets = np.where(np.isnan(labels), _VALUES[blank], labels)
    return np.where(labels == _UNCERTAIN_LABEL, _VALUES[uncertain], targets)


def policy_notes(labels: np.ndarray, uncertain: str, blank: str) -> list[str]:
    """Return a note for each kind of label that the policies replace."""
    notes = []
    kinds = (("uncertain", labels == _UNCERTAIN_LABEL, uncertain), ("blank", np.isnan(labels), blank))
    for name, found, policy in kinds:
        if count := int(found.sum()):
            how = "are ignored" if policy == "ignore" else f"count as {_VALUES[policy]:.0f}"
            notes.append(f"{count:,} of {labels.size:,} labels are {name}. They {how} ({name}={policy!r}).")
    return notes


def check_some_readable(images: FindingImages, where: str) -> None:
    """Raise `ValueError` if none of the images can be decoded. `where` describes the data."""
    reason = ""
    for image in images.images:
        try:
            read_row_image(image)
            return
        except ImageError as error:
            reason = reason or str(error)
    raise ValueError(f"{where}: none of the {len(images):,} images can be read. The first: {reason}")


def single_valued(images: FindingImages) -> dict[str, str]:
    """Return the reason for each finding whose labels are not of both classes, so that it cannot be learned."""
    reasons = {}
    for name, column in zip(images.findings, images.targets.T, strict=True):
        known = column[~np.isnan(column)]
        if len(np.unique(known)) < 2:
            reasons[name] = f"all {len(known):,} labels are {known[0]:.0f}" if len(known) else "all labels are ignored"
    return reasons

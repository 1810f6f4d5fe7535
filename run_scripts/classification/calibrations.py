"""Read and write `calibration.json`: the temperature of a classifier, with the model and the labels it belongs to."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from biomedclip.processing.tables import read_text
from biomedclip.source_checks import find_file

from ..cli.errors import UsageError
from ..cli.reporting import show_stage, write_json


FILE = "calibration.json"
NONE = "none"  # value of --calibration
_LARGEST = 10_000_000  # bytes
_SCHEMA = 1


@dataclass(frozen=True)
class Calibration:
    """The temperature of a classifier.

    Args:
        temperature: Number by which the logits are divided.
        labels: The labels in the order of the logits.
        weights: Fingerprint of the weights.
        prompts: Prompts of each label, None for a fine-tuned classifier.
        fitted_on: The images on which the temperature was fitted, for people.
        path: The file, None if there is none. Then the temperature is 1.
    """

    temperature: float
    labels: list[str]
    weights: str
    prompts: dict[str, list[str]] | None = None
    fitted_on: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def content(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {"schema": _SCHEMA, **{name: value for name, value in asdict(self).items() if name != "path"}}

    def write(self, path: Path) -> None:
        """Write the file."""
        write_json(path, self.content())

    def as_record(self) -> dict[str, Any] | None:
        """Return what the record of a run states, None without a file."""
        return None if self.path is None else {"file": str(self.path), "temperature": self.temperature}

    def check(self, labels: Sequence[str], prompts: Mapping[str, Sequence[str]], weights: str) -> None:
        """Raise `ValueError` if the file belongs to other weights, labels or prompts."""
        if self.path is None:
            return
        if what := self.differs(labels, prompts, weights):
            raise ValueError(
                f"{self.path} was fitted for other {what}. Fit it again with biomedclip evaluate --calibrate, or pass "
                f"--calibration {NONE}."
            )

    def show(self) -> None:
        """Print the temperature, if there is one."""
        if self.path is not None:
            show_stage(f"The probabilities are calibrated: {self.shown} of {self.path}")

    @property
    def shown(self) -> str:
        """Return the temperature in words."""
        return f"temperature {self.temperature:.4g}"

    def differs(self, labels: Sequence[str], prompts: Mapping[str, Sequence[str]], weights: str) -> str | None:
        """Return in what a model differs from the one that the file was fitted for: labels, prompts or weights."""
        own_prompts = {label: list(of_label) for label, of_label in prompts.items()} or None
        for what, mine, given in (
            ("labels", self.labels, list(labels)),
            ("prompts", self.prompts, own_prompts),
            ("weights", self.weights, weights),
        ):
            if mine != given:
                return what
        return None


def read_calibration(path: Path) -> Calibration:
    """Read a `calibration.json`.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not a calibration. The message names the field.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the file does not exist. biomedclip evaluate --calibrate writes it.")
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path}: not a {FILE}, because it has more than {_LARGEST:,} bytes.")
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}).") from error
    content = content if isinstance(content, dict) else {}
    temperature: Any = content.get("temperature")
    labels: Any = content.get("labels")
    prompts = content.get("prompts")
    are_prompts = isinstance(prompts, dict) and all(map(_are_texts, prompts.values())) and list(prompts) == labels
    for name, is_right in (
        ("schema", content.get("schema") == _SCHEMA),
        ("temperature", isinstance(temperature, float | int) and math.isfinite(temperature) and temperature > 0),
        ("labels", _are_texts(labels) and len(set(labels)) == len(labels) > 1),
        ("weights", isinstance(content.get("weights"), str)),
        ("prompts", prompts is None or are_prompts),
        ("fitted_on", isinstance(content.get("fitted_on"), dict)),
    ):
        if not is_right:
            raise ValueError(
                f"{path}: the field {name} is missing or wrong. biomedclip evaluate --calibrate writes it."
            )
    return Calibration(float(temperature), labels, content["weights"], prompts, content["fitted_on"], path)


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def load_calibration(given: str | None, model: str) -> Calibration:
    """Return the calibration of `--calibration`, or that of the model, or one that changes nothing.

    Raises:
        FileNotFoundError: If the given file does not exist.
        UsageError: If `--calibration none` is given, but the model has no calibration.
        ValueError: If the file is not a calibration.
    """
    own = find_file(model, FILE) if Path(model).is_dir() or "/" in model else None
    if given == NONE and own is None:
        raise UsageError(f"--calibration {NONE} has no effect: {model} has no {FILE}. Omit it.")
    if given not in (None, NONE):
        path = Path(str(given))
        return read_calibration(path / FILE if path.is_dir() else path)
    return read_calibration(own) if own is not None and given is None else Calibration(1.0, [], "")


__all__ = ["FILE", "NONE", "Calibration", "load_calibration", "read_calibration"]

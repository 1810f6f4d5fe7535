"""Read and write `calibration.json`: the temperatures of a classifier, with the model and the labels they belong to."""

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
    """The temperature of a classifier, or those of the findings of a classifier of several findings.

    Args:
        temperature: Number by which the logits are divided, or one for each label.
        labels: The labels in the order of the logits.
        weights: Fingerprint of the weights.
        prompts: Prompts of each label, None for a fine-tuned classifier.
        fitted_on: The images on which the temperature was fitted, for people.
        path: The file, None if there is none. Then the temperature is 1.
        bias: Number for each label that is added to its logit after the division, None with a single temperature.
    """

    temperature: float | list[float]
    labels: list[str]
    weights: str
    prompts: dict[str, list[str]] | None = None
    fitted_on: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None
    bias: list[float] | None = None

    def apply(self, logits: Any) -> Any:
        """Return calibrated logits. `logits` is a tensor `(images, labels)`."""
        if self.path is None:
            return logits
        scaled = logits / logits.new_tensor(self.temperature)
        return scaled if self.bias is None else scaled + logits.new_tensor(self.bias)

    @property
    def seen_in_training(self) -> int:
        """Return how many of the images of `fitted_on` the classifier was trained on, 0 if this is not known."""
        seen = self.fitted_on.get("seen_in_training")
        count = seen.get("train") if isinstance(seen, Mapping) else None
        return count if isinstance(count, int) else 0

    def content(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {"schema": _SCHEMA, **{name: value for name, value in asdict(self).items() if name != "path"}}

    def write(self, path: Path) -> None:
        """Write the file."""
        write_json(path, self.content())

    def as_record(self) -> dict[str, Any] | None:
        """Return what the record of a run states, None without a file."""
        if self.path is None:
            return None
        bias = {} if self.bias is None else {"bias": self.bias}
        return {"file": str(self.path), "temperature": self.temperature, **bias}

    def check(self, labels: Sequence[str], prompts: Mapping[str, Sequence[str]], weights: str) -> None:
        """Raise `ValueError` if the file belongs to other weights, labels or prompts."""
        if self.path is None:
            return
        if what := self.differs(labels, prompts, weights):
            raise ValueError(
                f"{self.path} was fitted for other {what}. Fit it again with biomedclip evaluate --calibrate, or pass "
                f"--calibration {NONE}."
            )

    def check_kind(self, model: str, several: bool) -> None:
        """Raise `ValueError` unless there is one temperature, or one for each finding if a model predicts `several`."""
        if self.path is not None and isinstance(self.temperature, list) != several:
            kinds = ("one number", "a list of numbers")
            found, needed = kinds[not several], kinds[several]
            raise ValueError(
                f"{self.path}: the field temperature is {found}, but {model} predicts "
                f"{'several findings' if several else 'one label'} for each image, which needs {needed}. Fit it again "
                "with biomedclip evaluate image-classification --calibrate, or remove the file."
            )

    def show(self) -> None:
        """Print the temperature, if there is one."""
        if self.path is not None:
            show_stage(f"The probabilities are calibrated: {self.shown} of {self.path}")

    @property
    def shown(self) -> str:
        """Return the temperature in words."""
        if not isinstance(self.temperature, list):
            return f"temperature {self.temperature:.4g}"
        return f"temperatures {min(self.temperature):.4g} to {max(self.temperature):.4g} of {len(self.labels)} findings"

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


UNCALIBRATED = Calibration(1.0, [], "")  # changes nothing


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
    bias: Any = content.get("bias")
    labels: Any = content.get("labels")
    several = isinstance(temperature, list)
    prompts = content.get("prompts")
    are_prompts = isinstance(prompts, dict) and all(map(_are_texts, prompts.values())) and list(prompts) == labels
    for name, is_right in (
        ("schema", content.get("schema") == _SCHEMA),
        ("temperature", _are_numbers(temperature if several else [temperature], above=0)),
        ("labels", _are_texts(labels) and len(set(labels)) == len(labels) > 1),
        ("weights", isinstance(content.get("weights"), str)),
        ("prompts", prompts is None or are_prompts),
        ("fitted_on", isinstance(content.get("fitted_on"), dict)),
        ("temperature", not several or len(temperature) == len(labels)),
        ("bias", _are_numbers(bias) and len(bias) == len(labels) if several else bias is None),
    ):
        if not is_right:
            raise ValueError(
                f"{path}: the field {name} is missing or wrong. biomedclip evaluate --calibrate writes it."
            )
    temperatures = [float(value) for value in temperature] if several else float(temperature)
    return Calibration(temperatures, labels, content["weights"], prompts, content["fitted_on"], path, bias)


def _are_numbers(values: Any, above: float = -math.inf) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, float | int) and math.isfinite(value) and value > above for value in values
    )


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
    return read_calibration(own) if own is not None and given is None else UNCALIBRATED


__all__ = ["FILE", "NONE", "UNCALIBRATED", "Calibration", "load_calibration", "read_calibration"]

"""Zero-shot classification of labeled images at each evaluation during training."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from transformers import TrainingArguments

from biomedclip import ZeroShotClassifier
from biomedclip.processing import load_benchmark
from biomedclip.processing.benchmarks import ClassificationBenchmark, benchmark_names
from biomedclip.processing.images.errors import ImageError
from biomedclip.processing.images.labeled import LabeledImages, check_readable
from biomedclip.processing.images.reading import read_row_image

from ..cli.errors import UsageError
from ..cli.fields import option


logger = logging.getLogger(__name__)


@dataclass
class ZeroShotOptions:
    """Options of the labeled images to classify at each evaluation."""

    zero_shot_data: list[str] = option(
        [],
        "Labeled images to classify at each evaluation: class folders, built datasets with a labels.csv, "
        "BENCHMARK=FOLDER or NAME=FOLDER.",
    )
    zero_shot_split: str = option("test", "Split of the labeled images (default: test).")
    zero_shot_templates: list[str] = option(
        [], "Prompt templates, with {} for the class name (default: those of biomedclip evaluate)."
    )

    def __post_init__(self):
        for template in self.zero_shot_templates:
            if "{}" not in template:
                raise ValueError(f"--zero-shot-templates: {template!r} does not contain {{}} for the class name.")
        if not self.zero_shot_data and (self.zero_shot_templates or self.zero_shot_split != "test"):
            raise ValueError("--zero-shot-templates and --zero-shot-split have no effect without --zero-shot-data.")


def read_zero_shot_sets(options: ZeroShotOptions, args: TrainingArguments) -> list[ClassificationBenchmark]:
    """Read the labeled images that the options specify."""
    if options.zero_shot_data and args.eval_strategy == "no" and not args.eval_on_start:
        raise UsageError("--zero-shot-data requires evaluation. Set --eval-strategy steps and --eval-steps.")
    sets: dict[str, ClassificationBenchmark] = {}
    for wanted in options.zero_shot_data:
        name, path = _name_and_path(wanted)
        if name in sets:
            raise UsageError(f"--zero-shot-data: two datasets have the name {name!r}. Rename one: NAME={path}.")
        known = name if name in benchmark_names("zero-shot") else "imagefolder"
        split: Any = options.zero_shot_split
        benchmark: Any = load_benchmark(known, path, split=split)
        sets[name] = replace(benchmark, name=name, templates=options.zero_shot_templates or benchmark.templates)
        classes = benchmark.classes
        if len(classes) < 2:
            raise ValueError(
                f"--zero-shot-data {path}: all images are {classes[0]!r}. At least two classes are required."
            )
        check_readable(benchmark.images, f"--zero-shot-data {path}")
    return list(sets.values())


def _name_and_path(wanted: str) -> tuple[str, str]:
    """Return the two parts of NAME=PATH. For a path alone, the name is derived from its last part."""
    name, sign, path = wanted.partition("=")
    if not sign or not re.fullmatch(r"\w+", name):
        path = wanted
        name = re.sub(r"\W+", "_", Path(wanted).resolve().name).strip("_")
    return name, path


class ZeroShotValidation:
    """Evaluator of a [`ContrastiveTrainer`] that classifies labeled images.

    All processes must call it. They share the images evenly and process the same number of batches, as a sharded model
    requires. Unreadable images are excluded, with one warning. The name of the benchmark is part of those of the
    metrics. `batch_size` is the number of images per batch in each process.
    """

    def __init__(
        self, benchmark: ClassificationBenchmark, processor: Any, *, batch_size: int = 32, max_length: int | None = None
    ):
        self.benchmark = benchmark
        self.processor = processor
        self.batch_size = batch_size
        self.max_length = max_length
        self.unreadable: set[int] = set()

    def __call__(self, model: Any) -> dict[str, float]:
        """Return accuracy and balanced accuracy on the readable images."""
        state, benchmark = PartialState(), self.benchmark
        total = len(benchmark.images)
        share = -(-total // state.num_processes)
        # If the images cannot be divided evenly, the last image is repeated.
        numbers = [min(state.process_index * share + place, total - 1) for place in range(share)]
        images = _Readable(benchmark.images, numbers)
        classifier = ZeroShotClassifier(
            model, self.processor, benchmark.class_names, benchmark.templates, max_length=self.max_length
        )
        chosen = classifier.similarities(images, batch_size=self.batch_size).argmax(dim=-1).tolist()
        answers = dict(gather_object(list(zip(numbers, chosen, strict=True))))
        unreadable = set(gather_object(sorted(images.unreadable)))
        if unreadable - self.unreadable and state.is_main_process:
            what = f"{benchmark.name}: {len(unreadable)} of {total} images"
            first = benchmark.images.names[min(unreadable)]
            logger.warning("%s cannot be read and are excluded. The first one is %s.", what, first)
        self.unreadable |= unreadable
        read = [number for number in sorted(answers) if number not in self.unreadable]
        if not read:
            raise ImageError(f"{benchmark.name}: none of the {total:,} images can be read.")
        truth = [benchmark.images.labels[number] for number in read]
        given = [benchmark.classes[answers[number]] for number in read]
        return {
            f"zero_shot_{benchmark.name}_accuracy": float(accuracy_score(truth, given)),
            f"zero_shot_{benchmark.name}_balanced_accuracy": float(balanced_accuracy_score(truth, given)),
        }


class _Readable(Sequence[Any]):
    """Images by index. Unreadable ones are recorded and replaced by black images."""

    def __init__(self, images: LabeledImages, numbers: Sequence[int]):
        self.images = images
        self.numbers = numbers
        self.unreadable: set[int] = set()

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, places: Any) -> Any:
        if isinstance(places, slice):
            return [self[place] for place in range(*places.indices(len(self)))]
        number = self.numbers[places]
        try:
            return read_row_image(self.images.images[number])
        except ImageError:
            self.unreadable.add(number)
            return Image.new("RGB", (8, 8))

"""Zero-shot classification of labeled images while a model is trained, beside the retrieval of held-out pairs."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from transformers import TrainingArguments

from biomedclip import ZeroShotClassifier
from biomedclip.processing import load_benchmark
from biomedclip.processing.benchmarks.benchmark import ClassificationBenchmark
from biomedclip.processing.benchmarks.loading import CLASSIFICATION
from biomedclip.processing.images.labeled import LabeledImages, check_readable
from biomedclip.processing.images.reading import ImageError, read_row_image

from ..cli.errors import UsageError
from ..evaluation.own_images import TEMPLATES, unpublished_benchmark


logger = logging.getLogger(__name__)


@dataclass
class ZeroShotOptions:
    """What is classified by prompts at each evaluation of a training."""

    zero_shot_data: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Labeled images to classify at each evaluation: class folders, built sets with a labels.csv, or "
            "BENCHMARK=FOLDER. NAME=FOLDER names one otherwise."
        },
    )
    zero_shot_split: str = field(default="test", metadata={"help": "Split of the labeled images."})
    zero_shot_templates: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Prompts of the labeled images; {} stands for the class name. As biomedclip evaluate, if left out."
        },
    )

    def __post_init__(self):
        for template in self.zero_shot_templates:
            if "{}" not in template:
                raise ValueError(f"--zero-shot-templates: {template!r} has no {{}} for the class name.")
        if not self.zero_shot_data and (self.zero_shot_templates or self.zero_shot_split != "test"):
            raise ValueError("--zero-shot-templates and --zero-shot-split have no effect without --zero-shot-data.")


def read_zero_shot_sets(options: ZeroShotOptions, args: TrainingArguments) -> list[ClassificationBenchmark]:
    """The sets that the options name, each called as its figures are.

    Raises:
        FileNotFoundError: No labeled images there.
        ValueError: One class alone, two sets of one name, or a training without evaluation.
    """
    if options.zero_shot_data and args.eval_strategy == "no" and not args.eval_on_start:
        raise UsageError(
            "--zero-shot-data is classified at each evaluation, and there is none. Set --eval-strategy steps and "
            "--eval-steps."
        )
    sets: dict[str, ClassificationBenchmark] = {}
    for wanted in options.zero_shot_data:
        name, path = _name_and_path(wanted)
        if name in sets:
            raise UsageError(f"--zero-shot-data: two sets are called {name!r}. Call one otherwise: NAME={path}.")
        sets[name] = _read_zero_shot_set(name, path, options)
        classes = sets[name].classes
        if len(classes) < 2:
            raise ValueError(f"--zero-shot-data {path}: all images are {classes[0]!r}; it takes two classes at least.")
        check_readable(sets[name].images, f"--zero-shot-data {path}")
    return list(sets.values())


def _read_zero_shot_set(name: str, path: str, options: ZeroShotOptions) -> ClassificationBenchmark:
    split: Any = options.zero_shot_split
    if name not in CLASSIFICATION:
        return replace(unpublished_benchmark(path, split, options.zero_shot_templates or TEMPLATES), name=name)
    benchmark: Any = load_benchmark(name, path, split=split)
    return replace(benchmark, templates=options.zero_shot_templates or benchmark.templates)


def _name_and_path(wanted: str) -> tuple[str, str]:
    """The two parts of NAME=PATH; of a path alone the name is its last part, fit to be one of a figure."""
    name, sign, path = wanted.partition("=")
    if not sign or not re.fullmatch(r"\w+", name):
        path = wanted
        name = re.sub(r"\W+", "_", Path(wanted).resolve().name).strip("_")
    return name, path


class ZeroShotValidation:
    """Classifies a set with a model that is being trained; a [`ContrastiveTrainer`] calls it at each evaluation.

    All processes must call it. They share the images evenly, and so that each takes the same batches: a sharded model
    is put together anew for each. Images that cannot be read are left out, and named in a warning once.

    Args:
        benchmark: What is classified; its name is that of the figures.
        processor: The processor of the model.
        batch_size: Images at a time in each process.
        max_length: Tokens a prompt is cut at; the tokenizer's limit when left out.
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
        """Accuracy and balanced accuracy of the images that can be read, by names that tell the set."""
        state, benchmark = PartialState(), self.benchmark
        total = len(benchmark.images)
        share = -(-total // state.num_processes)
        # The last process takes the last image more than once, where they do not come out even.
        numbers = [min(state.process_index * share + place, total - 1) for place in range(share)]
        images = _Readable(benchmark.images, numbers)
        classifier = ZeroShotClassifier(
            model, self.processor, benchmark.class_names, benchmark.templates, max_length=self.max_length
        )
        chosen = classifier.similarities(images, batch_size=self.batch_size).argmax(dim=-1).tolist()
        answers = dict(gather_object(list(zip(numbers, chosen, strict=True))))
        self._warn_of(set(gather_object(sorted(images.unreadable))))
        read = [number for number in sorted(answers) if number not in self.unreadable]
        if not read:
            raise ImageError(f"{benchmark.name}: none of its {total:,} images can be read.")
        truth = [benchmark.images.labels[number] for number in read]
        given = [benchmark.classes[answers[number]] for number in read]
        return {
            f"zero_shot_{benchmark.name}_accuracy": float(accuracy_score(truth, given)),
            f"zero_shot_{benchmark.name}_balanced_accuracy": float(balanced_accuracy_score(truth, given)),
        }

    def _warn_of(self, unreadable: set[int]) -> None:
        if unreadable - self.unreadable and PartialState().is_main_process:
            logger.warning(
                "%s: %d of %d images cannot be read and are left out, the first of them %s.",
                self.benchmark.name,
                len(unreadable),
                len(self.benchmark.images),
                self.benchmark.images.names[min(unreadable)],
            )
        self.unreadable |= unreadable


class _Readable(Sequence[Any]):
    """Some of the images, black ones in the place of those that cannot be read, whose numbers are noted."""

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

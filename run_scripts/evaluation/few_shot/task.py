"""Few-shot learning: classify test images with heads that are fitted on a few images of each class."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from biomedclip import ZeroShotClassifier
from biomedclip.few_shot_head import METHODS
from biomedclip.processing.benchmarks import ClassificationBenchmark
from biomedclip.processing.benchmarks.facts import published_few_shot
from biomedclip.processing.benchmarks.leaks import Copy, find_copies
from biomedclip.processing.benchmarks.same_images import Looks
from biomedclip.processing.images.labeled import LabeledImages

from ...cli.errors import UsageError, suggestion
from ...cli.plots import plot_few_shot
from ..dual_encoders import DualEncoder
from ..features import Features
from ..linear_probe import read_learned
from ..run import Run, note_if_few_drawn
from ..zero_shot import classification_metrics, data_of
from .context import ContextEncoder
from .draws import Draw, draw_shots, halves, selected_images
from .finished import FITS, FinishedFits
from .methods import TEXT_METHODS, TRANSFERABLE, Fit, Images, Shots, check_shots, fit
from .summary import PARTS, harmonic_mean, show_few_shot, summarize


SHOTS = (1, 2, 4, 8, 16)
DRAWS = 5  # default number of draws
PLOT = "few_shot.png"
SHOWN = 5  # copies and classes that messages list
MEASURED = ("accuracy", "balanced_accuracy", "auroc")
NO_VALIDATION = (
    "there are no validation images, on which the settings of the methods are chosen. Few-shot learning needs at least "
    "two training images of a class. Add images, or a folder validation."
)
ZERO_SHOT = "zero-shot"  # the method that needs no training images


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


@dataclass(frozen=True)
class Embedded:
    """The images of a split that could be embedded, with their embeddings and class indices."""

    images: LabeledImages
    embeds: torch.Tensor
    labels: np.ndarray

    def of(self, rows: Sequence[int], classes: Sequence[int]) -> Images:
        """Return the rows that are of the given classes. Their labels become places in `classes`."""
        place = {number: order for order, number in enumerate(classes)}
        kept = [row for row in rows if self.labels[row] in place]
        labels = torch.tensor([place[self.labels[row]] for row in kept], dtype=torch.int64)
        return Images(self.embeds[kept], labels)


def check_few_shot_options(options: Any, given: set[str]) -> None:
    """Raise `UsageError` if an option of few-shot learning has an invalid value or no effect."""
    for method in options.methods:
        if method not in METHODS:
            raise UsageError(
                f"--methods: {method!r} is unknown.{suggestion(method, METHODS)} Choose from {', '.join(METHODS)}."
            )
    for name in ("methods", "shots"):
        values = getattr(options, name)
        if not values or len(set(values)) < len(values):
            raise UsageError(
                f"--{name} needs one or more different values, not {' '.join(map(str, values)) or 'none'}."
            )
    if min(options.shots) < 1:
        raise UsageError(f"--shots must be 1 or more, not {min(options.shots)}.")
    if options.methods == [ZERO_SHOT] and given & {"shots", "draws"}:
        raise UsageError("--shots and --draws have no effect on --methods zero-shot. Omit them, or add a method.")
    texts = sorted(given & {"templates", "prompts", "max_length"})
    for method, in_vain in ((ZERO_SHOT, sorted(given & {"find_leaks"})), ("linear-probe", texts)):
        if options.methods == [method] and in_vain:
            name = "no-find-leaks" if in_vain[0] == "find_leaks" else in_vain[0].replace("_", "-")
            raise UsageError(f"--{name} has no effect on --methods {method}. Omit it, or add a method.")
    if options.split == "train":
        raise UsageError("--split train: the methods would be tested on their training images. Pass --split test.")
    fixed = [method for method in options.methods if method not in TRANSFERABLE]
    if options.base_to_novel and fixed:
        raise UsageError(
            f"--base-to-novel: {', '.join(fixed)} cannot classify images of classes without training images. Pass "
            f"--methods with some of {', '.join(TRANSFERABLE)}."
        )


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
        for half in _halves_of(test.classes):
            if not set(half) & set(test.images.labels):
                raise ValueError(
                    f"{where}: --base-to-novel needs test images of both halves of the classes, but there is none of "
                    f"{', '.join(half)}. Add images, or omit --base-to-novel."
                )
    counts = Counter(train.images.labels)
    if options.methods != [ZERO_SHOT]:
        label, largest = counts.most_common(1)[0]
        if "validation" not in splits or options.split == "validation":
            if largest == 1:
                raise ValueError(f"{where}: {NO_VALIDATION}")
            largest -= largest // 2  # the others are for validation
        if too_many := [str(shots) for shots in sorted(options.shots) if shots > largest]:
            raise ValueError(
                f"{where}: --shots {' '.join(too_many)}: no class has as many training images. The largest, {label!r}, "
                f"has {largest}. Omit these numbers."
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
    if not PartialState().is_main_process:
        return None
    embedded = {split: _embedded(data.splits[split], features[split], split) for split in data.splits}
    learner = _Learner(run, encoder, embedded)
    draws = options.draws or DRAWS
    seeds = range(options.seed, options.seed + draws)
    drawn = learner.draw_all(sorted(options.shots), seeds) if options.methods != [ZERO_SHOT] else {}
    notes = [*data.notes, *learner.notes(drawn)]
    fits = FinishedFits(run.output_dir / FITS, learner.settings())
    wanted = [
        (method, shots, seed)
        for method in options.methods
        for shots, seed in ([(0, options.seed)] if method == ZERO_SHOT else drawn)
    ]
    images = {key: learner.digest(draw) for key, draw in drawn.items()}
    for method, shots, seed in tqdm(wanted, desc="Fits", unit="fit", dynamic_ncols=True):
        digest = images.get((shots, seed))
        if fits.get(method, shots, seed, digest) is None:
            fits.add(learner.measure(method, shots, seed, drawn.get((shots, seed))) | {"drawn": digest})
    found = [fits.get(method, shots, seed, images.get((shots, seed))) for method, shots, seed in wanted]
    test = embedded[data.split]
    metrics = {
        "by_method": summarize([entry for entry in found if entry], PARTS if options.base_to_novel else MEASURED),
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
        predictions=None,  # there are several heads
        settings={
            **{name: list(getattr(options, name)) for name in ("methods", "shots")},
            "draws": draws,
            "base_to_novel": options.base_to_novel,
            "templates": data.test.templates,
            "class_names": dict(zip(data.test.classes, data.test.class_names, strict=True)),
        },
        also=f", plot in {run.output_dir / PLOT}",
    )


def _halves_of(classes: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Return the base and the novel classes: the first half, rounded up, and the others."""
    middle = -(-len(classes) // 2)
    return list(classes[:middle]), list(classes[middle:])


def _embedded(benchmark: ClassificationBenchmark, features: Features, split: str) -> Embedded:
    """Return the embedded images of a split. Raise `ValueError` if an embedding is not finite."""
    images = benchmark.images.select(features.rows.tolist())
    bad = (~torch.isfinite(features.embeds).all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"The embeddings of {len(bad):,} of {len(images):,} {split} images are NaN or infinite, the first of "
            f"{images.names[bad[0]]}. Check the weights of the model, or pass --precision float32."
        )
    number_of = {label: number for number, label in enumerate(benchmark.classes)}
    labels = np.array([number_of[label] for label in images.labels])
    return Embedded(images, features.embeds.float(), labels)


class _Learner:
    """Draws, fits and measures heads of one model."""

    def __init__(self, run: Run, encoder: DualEncoder, embedded: Mapping[str, Embedded]):
        self.run, self.encoder, self.embedded = run, encoder, embedded
        self.benchmark: ClassificationBenchmark = run.data.test
        self.train, self.test = embedded["train"], embedded[run.data.split]
        self.own_validation = "validation" in embedded and run.data.split != "validation"
        self.validation = embedded["validation"] if self.own_validation else self.train
        self.copies: dict[str, str] = {}  # training or validation images that are not drawn, with the test image
        self._looks: list[Looks] = []  # of the test images
        self._texts: dict[tuple[int, ...], torch.Tensor] = {}
        self._contexts: dict[tuple[int, ...], ContextEncoder] = {}

    def draw_all(self, shots: Sequence[int], seeds: Sequence[int]) -> dict[tuple[int, int], Draw]:
        """Return the draw of each number of shots and seed.

        If the splits were drawn from one set of images, copies of test images are not drawn. Raise `ValueError` if the
        splits of the data contain such copies.
        """
        while True:
            drawn = {(count, seed): self._draw(count, seed) for count in shots for seed in seeds}
            found = self._copies(drawn) if self.run.options.find_leaks else []
            if not found:
                return drawn
            if not self.benchmark.images.drawn:
                shown = "; ".join(f"{copy.test} is {copy.train} ({copy.reason})" for copy in found[:SHOWN])
                more = f"; and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
                raise ValueError(
                    f"--data {self.run.options.data}: {len(found):,} test images are also among the training or "
                    f"validation images that were drawn: {shown}{more}. Remove them from one of the splits, or pass "
                    "--no-find-leaks."
                )
            self.copies |= {copy.train: copy.test for copy in found}

    def _draw(self, shots: int, seed: int) -> Draw:
        train, validation = (
            [row for row, name in enumerate(split.images.names) if name not in self.copies]
            for split in (self.train, self.validation)
        )
        if not self.own_validation:
            groups = self.train.images.groups
            of_rows = groups and [groups[row] for row in train]
            halved = halves(self.train.labels[train], of_rows, seed, f"--data {self.run.options.data}, train split")
            train, validation = ([train[place] for place in half] for half in halved)
        return Draw(
            draw_shots(self.train.labels, shots, seed, train),
            draw_shots(self.validation.labels, shots, seed, validation),
        )

    def _copies(self, drawn: Mapping[tuple[int, int], Draw]) -> list[Copy]:
        train = sorted({row for draw in drawn.values() for row in draw.train})
        validation = sorted({row for draw in drawn.values() for row in draw.validation})
        shots = selected_images([(self.train.images, train), (self.validation.images, validation)])
        return find_copies(shots, self.test.images, progress=True, known=self._looks)

    def notes(self, drawn: Mapping[tuple[int, int], Draw]) -> list[str]:
        """Return notes on draws with too few images. Raise `ValueError` if a draw cannot be learned."""
        notes = []
        classes = self._learned_classes()
        for (shots, seed), draw in drawn.items():
            train, validation = self.train.of(draw.train, classes), self.validation.of(draw.validation, classes)
            check_shots(train, validation, f"--shots {shots}, draw with seed {seed}")
        if self.copies:
            shown = ", ".join(f"{train} ({test})" for train, test in list(self.copies.items())[:SHOWN])
            more = f", and {len(self.copies) - SHOWN} more" if len(self.copies) > SHOWN else ""
            notes.append(
                f"{len(self.copies):,} images are not drawn, as they are copies of test images: {shown}{more}."
            )
        if drawn and not self.own_validation:
            notes.append("The data has no validation split: settings are chosen on other training images.")
        count = len(set(self.train.labels.tolist()))
        for name, labels in (("training", self.train.labels), ("validation", self.validation.labels)):
            short = []
            for (shots, _), draw in drawn.items():
                rows = draw.train if name == "training" else draw.validation
                if len(rows) < shots * count:
                    counts = Counter(labels[rows].tolist())
                    short += [
                        f"{self.benchmark.classes[number]} has {counts[number]} of {shots}"
                        for number in range(len(self.benchmark.classes))
                        if counts[number] < shots
                    ]
            if short := list(dict.fromkeys(short)):
                shown = ", ".join(short[:SHOWN]) + (f", and {len(short) - SHOWN} more" if len(short) > SHOWN else "")
                notes.append(f"Some classes have fewer {name} images than shots: {shown}.")
        return notes

    def digest(self, draw: Draw) -> str:
        """Return a hash of the names of the images of a draw. Copies that are not drawn change it."""
        rows = ((self.train, draw.train), (self.validation, draw.validation))
        names = [[split.images.names[row] for row in drawn] for split, drawn in rows]
        return hashlib.blake2b(json.dumps(names).encode(), digest_size=8).hexdigest()

    def settings(self) -> dict[str, Any]:
        """Return everything that a fit depends on, except its method, shots, seed and images."""
        options, data = self.run.options, self.run.data
        return {
            "model": self.encoder.weights,
            "processor": self.encoder.processing,
            "precision": self.encoder.precision,
            "data": {split: benchmark.fingerprint for split, benchmark in data.splits.items()},
            "split": data.split,
            "seed of the splits": options.seed,
            "prompts": [self.benchmark.templates, self.benchmark.class_names, getattr(options, "max_length", None)],
            "classes": list(self.benchmark.classes),
            "base-to-novel": options.base_to_novel,
            "version": version("biomedclip"),
        }

    def halves_of_classes(self) -> tuple[list[int], list[int]]:
        """Return the numbers of the base and the novel classes."""
        return _halves_of(range(len(self.benchmark.classes)))

    def _learned_classes(self) -> list[int]:
        return self.halves_of_classes()[0] if self.run.options.base_to_novel else [*range(len(self.benchmark.classes))]

    def measure(self, method: str, shots: int, seed: int, draw: Draw | None) -> dict[str, Any]:
        """Fit a head and measure it on the test images."""
        classes = self._learned_classes()
        novel = self.halves_of_classes()[1] if self.run.options.base_to_novel else []
        draw = draw or Draw([], [])
        seen = Shots(
            train=self.train.of(draw.train, classes),
            validation=self.validation.of(draw.validation, classes),
            class_embeds=self._class_embeds(classes),
            logit_scale=self.encoder.logit_scale,
            contexts=self._context(classes) if method == "coop" else None,
            seed=seed,
        )
        fitted = fit(method, seen)
        entry: dict[str, Any] = {"method": method, "shots": shots, "seed": seed}
        entry |= {"images": len(seen.train), "validation_images": len(seen.validation), **fitted.chosen}
        measured = self._metrics(fitted, classes)
        if not novel:
            return entry | measured
        accuracies = [measured["accuracy"], self._metrics(self._transferred(fitted, novel), novel)["accuracy"]]
        return entry | dict(zip(PARTS, [*accuracies, harmonic_mean(*accuracies)], strict=True))

    def _transferred(self, fitted: Fit, classes: Sequence[int]) -> Fit:
        """Return a head with the texts of other classes."""
        texts = self._class_embeds(classes)
        if fitted.head.method == "coop":
            with torch.no_grad():
                texts = self._context(classes)(fitted.head.context.to(self.encoder.model.device)).cpu()
        return replace(fitted, head=fitted.head.with_classes(texts))

    def _metrics(self, fitted: Fit, classes: Sequence[int]) -> dict[str, Any]:
        names = [self.benchmark.classes[number] for number in classes]
        images = self.test.of(range(len(self.test.labels)), classes)
        if not len(images):
            raise ValueError(f"No test image is of the classes {', '.join(names)}.")
        with torch.no_grad():
            scores = fitted.head(images.embeds)
        positive = self.benchmark.positive if self.benchmark.positive in names else None
        labels = [names[place] for place in images.labels.tolist()]
        measured = classification_metrics(scores, labels, names, positive=positive, resamples=0)
        return {name: measured[name] for name in MEASURED}

    def _class_embeds(self, classes: Sequence[int]) -> torch.Tensor:
        """Return the embeddings of the prompts of classes, or zeros for an encoder without a text tower."""
        key = tuple(classes)
        if key not in self._texts:
            if hasattr(self.encoder.model, "get_text_features"):
                names = [self.benchmark.class_names[number] for number in classes]
                length = getattr(self.run.options, "max_length", None)
                with self.encoder.precise():
                    self._texts[key] = ZeroShotClassifier(
                        self.encoder.model, self.encoder.processor, names, self.benchmark.templates, max_length=length
                    ).class_embeds
            else:
                self._texts[key] = torch.zeros(len(classes), self.train.embeds.shape[1])
        return self._texts[key]

    def _context(self, classes: Sequence[int]) -> ContextEncoder:
        key = tuple(classes)
        if key not in self._contexts:
            names = [self.benchmark.class_names[number] for number in classes]
            length = getattr(self.run.options, "max_length", None)
            self._contexts[key] = ContextEncoder(self.encoder, names, self.benchmark.templates, length)
        return self._contexts[key]

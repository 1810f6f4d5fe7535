"""Draw, fit and measure the heads of one model."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from biomedclip import ZeroShotClassifier
from biomedclip.processing.benchmarks import ClassificationBenchmark
from biomedclip.processing.benchmarks.leaks import Copy, find_copies
from biomedclip.processing.benchmarks.same_images import Looks
from biomedclip.processing.images.corruptions import corruptions_version
from biomedclip.processing.images.labeled import LabeledImages

from ..dual_encoders import DualEncoder
from ..features import Features
from ..run import Run
from ..zero_shot import classification_metrics
from .context import ContextEncoder
from .draws import Draw, draw_shots, halves, selected_images
from .methods import Fit, Images, Shots, check_shots, fit
from .summary import PARTS, harmonic_mean


SHOWN = 5  # copies and classes that messages list
MEASURED = ("accuracy", "balanced_accuracy", "auroc")
ALL, BASE, NOVEL = "all", "base", "novel"  # parts of the test images
NO_ANSWER = -1  # for an image whose scores are not finite, or that cannot be corrupted
Corrupted = Mapping[tuple[str, int], Callable[[], Features]]  # by corruption and strength


@dataclass(frozen=True)
class Embedded:
    """The images of a split that could be embedded, with their embeddings and class indices."""

    images: LabeledImages
    embeds: torch.Tensor
    labels: np.ndarray
    rows: list[int]  # in the split

    def of(self, rows: Sequence[int], classes: Sequence[int]) -> Images:
        """Return the rows that are of the given classes. Their labels become places in `classes`."""
        place = {number: order for order, number in enumerate(classes)}
        kept = [row for row in rows if self.labels[row] in place]
        labels = torch.tensor([place[self.labels[row]] for row in kept], dtype=torch.int64)
        return Images(self.embeds[kept], labels)


@dataclass(frozen=True)
class Part:
    """Classes that a fit is measured on, and the rows of their test images: all, or the base and the novel ones."""

    name: str
    classes: list[int]
    rows: list[int]


def embedded_images(benchmark: ClassificationBenchmark, features: Features, split: str) -> Embedded:
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
    return Embedded(images, features.embeds.float(), labels, features.rows.tolist())


def halves_of(classes: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Return the base and the novel classes: the first half, rounded up, and the others."""
    middle = -(-len(classes) // 2)
    return list(classes[:middle]), list(classes[middle:])


def corrupted_answers(name: str, strength: int) -> str:
    """Return the name of the array with the predicted classes of corrupted images. Other versions have other names."""
    return f"answers {name} {strength}, corruptions {corruptions_version()}"


def _answers(scores: torch.Tensor) -> np.ndarray:
    """Return the first class with the highest score of each image."""
    answers = scores.argmax(dim=-1).masked_fill(~torch.isfinite(scores).all(dim=-1), NO_ANSWER)
    return answers.numpy().astype(np.int32)


class Learner:
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
            "test images": len(self.test.labels),
            "seed of the splits": options.seed,
            "prompts": [self.benchmark.templates, self.benchmark.class_names, getattr(options, "max_length", None)],
            "classes": list(self.benchmark.classes),
            "base-to-novel": options.base_to_novel,
            "version": version("biomedclip"),
        }

    def halves_of_classes(self) -> tuple[list[int], list[int]]:
        """Return the numbers of the base and the novel classes."""
        return halves_of(range(len(self.benchmark.classes)))

    def _learned_classes(self) -> list[int]:
        return self.halves_of_classes()[0] if self.run.options.base_to_novel else [*range(len(self.benchmark.classes))]

    @property
    def parts(self) -> list[Part]:
        """Return the parts of the test images. Raise `ValueError` if one of them has no image."""
        classes = {ALL: self._learned_classes()}
        if self.run.options.base_to_novel:
            classes = dict(zip((BASE, NOVEL), self.halves_of_classes(), strict=True))
        found = []
        for name, numbers in classes.items():
            rows = np.flatnonzero(np.isin(self.test.labels, numbers)).tolist()
            if not rows:
                names = ", ".join(self.benchmark.classes[number] for number in numbers)
                raise ValueError(f"No test image is of the classes {names}.")
            found.append(Part(name, numbers, rows))
        return found

    def measure(
        self,
        method: str,
        shots: int,
        seed: int,
        draw: Draw | None,
        *,
        keep_scores: bool = True,
        corrupted: Corrupted | None = None,
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Fit a head and measure it on the test images.

        Return the metrics, and arrays by name: the predicted class `answers PART` of each image of a part, its scores
        `scores PART` with `keep_scores`, and the predicted class of corrupted images, see [`corrupted_answers`].
        """
        classes, draw = self._learned_classes(), draw or Draw([], [])
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
        measured, arrays = {}, {}
        for part in self.parts:
            head = (self._transferred(fitted, part.classes) if part.name == NOVEL else fitted).head
            images = self.test.of(part.rows, part.classes)
            with torch.no_grad():
                scores = head(images.embeds)
            measured[part.name] = self._metrics(scores, images, part.classes)
            arrays[f"answers {part.name}"] = _answers(scores)
            arrays |= {f"scores {part.name}": scores.float().numpy()} if keep_scores else {}
        for (name, strength), read in (corrupted or {}).items():
            arrays[corrupted_answers(name, strength)] = self._corrupted_answers(fitted, read(), name, strength)
        if ALL in measured:
            return entry | measured[ALL], arrays
        accuracies = [measured[name]["accuracy"] for name in (BASE, NOVEL)]
        return entry | dict(zip(PARTS, [*accuracies, harmonic_mean(*accuracies)], strict=True)), arrays

    def _corrupted_answers(self, fitted: Fit, features: Features, name: str, strength: int) -> np.ndarray:
        """Return the predicted class of each test image, in the order of the images without corruption."""
        _, numbers, positions = np.intersect1d(features.rows.numpy(), self.test.rows, return_indices=True)
        if not len(numbers):
            raise ValueError(
                f"--corruptions: none of the {len(self.test.rows):,} test images can be read with the corruption "
                f"{name} at strength {strength}. Omit {name}."
            )
        answers = np.full(len(self.test.rows), NO_ANSWER, dtype=np.int32)
        with torch.no_grad():
            answers[positions] = _answers(fitted.head(features.embeds[numbers].float()))
        return answers

    def _transferred(self, fitted: Fit, classes: Sequence[int]) -> Fit:
        """Return a head with the texts of other classes."""
        texts = self._class_embeds(classes)
        if fitted.head.method == "coop":
            with torch.no_grad():
                texts = self._context(classes)(fitted.head.context.to(self.encoder.model.device)).cpu()
        return replace(fitted, head=fitted.head.with_classes(texts))

    def _metrics(self, scores: torch.Tensor, images: Images, classes: Sequence[int]) -> dict[str, Any]:
        names = [self.benchmark.classes[number] for number in classes]
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

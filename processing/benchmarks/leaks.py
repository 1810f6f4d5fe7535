"""Find images of a test split that are also in the training split.

[`find_leaks`] counts them for a report. [`find_copies`] names them, so that an evaluation can refuse them. Both compare
images as `same_images.py` does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tqdm.auto import tqdm

from ..images.labeled import LabeledImages
from .benchmark import ClassificationBenchmark, VisualQuestionBenchmark
from .same_images import SAME, KnownImages, Looks, looks_of


EXAMPLES_SHOWN = 10


@dataclass
class Leaks:
    """Images that two splits share. A test image can be counted under several reasons.

    Args:
        train_images: Number of training images with different names.
        test_images: Number of test images with different names.
        same_group: Test images from a patient, slide or source that is also in the training split. None if groups are
            not known.
        same_name: Test images with the name of a training image. None for classification, where names are only unique
            within a split.
        same_bytes: Test images whose file or array is identical to that of a training image.
        same_pixels: Test images whose pixels are identical to those of a training image.
        same_picture: Test images that are the picture of a training image, possibly resized or converted.
        similar: Test images that only look like a training image, by perceptual hash, such as slices of one volume.
        leaked: Test images to which any of these reasons applies.
        unreadable: Names of images that cannot be read. Only their files were compared.
        examples: For each reason, up to `EXAMPLES_SHOWN` pairs of a test and a training image.
    """

    train_images: int
    test_images: int
    same_group: int | None = None
    same_name: int | None = None
    same_bytes: int = 0
    same_pixels: int = 0
    same_picture: int = 0
    similar: int = 0
    leaked: int = 0
    unreadable: list[str] = field(default_factory=list)
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Copy:
    """A test image that is also a training image, with their names.

    `reason` states how the two images agree, and `row` is the row of the training image.
    """

    test: str
    train: str
    reason: str
    row: int


def find_leaks(
    train: ClassificationBenchmark | VisualQuestionBenchmark,
    test: ClassificationBenchmark | VisualQuestionBenchmark,
    *,
    progress: bool = False,
) -> Leaks:
    """Compare two splits of a benchmark, image by image. Each image is read and decoded once."""
    are_questions = isinstance(test, VisualQuestionBenchmark)
    train_names, train_images, train_groups = _images_of(train)
    test_names, test_images, test_groups = _images_of(test)
    leaks = Leaks(len(set(train_names)), len(set(test_names)), same_name=0 if are_questions else None)
    if any(train_groups) and any(test_groups):
        leaks.same_group = 0
    groups = _first_rows(train_groups)
    names = _first_rows(train_names) if are_questions else {}
    total = len(train_names) + len(test_names)
    with tqdm(total=total, desc="Leaks", unit="image", disable=not progress, dynamic_ncols=True) as bar:
        known = KnownImages(_read(train_names, train_images, train.split, leaks, bar))
        compared = _read(test_names, test_images, test.split, leaks, bar)
        for name, group, looks in zip(test_names, test_groups, compared, strict=True):
            partners = {"same_group": groups.get(group), "same_name": names.get(name)}
            found = {reason: row for reason, row in partners.items() if row is not None} | known.find(looks)
            leaks.leaked += bool(found)
            for reason, row in found.items():
                setattr(leaks, reason, getattr(leaks, reason) + 1)
                examples = leaks.examples.setdefault(reason, [])
                if len(examples) < EXAMPLES_SHOWN:
                    examples.append({"test": name, "train": train_names[row]})
    return leaks


def find_copies(
    train: LabeledImages, test: LabeledImages, *, progress: bool = False, known: list[Looks] | None = None
) -> list[Copy]:
    """Return the test images that are among the training images, each with one reason.

    The reasons are the same patient or source (if both have groups), the same file, the same pixels, or the same
    picture. Images that only look alike are no copies. Images that cannot be read are skipped. `known` is an empty list
    that is filled with the looks of the test images, or the list of an earlier call with the same ones, which are not
    read again.
    """
    looks = known if known is not None else []
    groups = _first_rows(train.groups or [])
    copies = []
    with tqdm(total=len(train) + len(test), desc="Copies", unit="image", disable=not progress) as bar:

        def read(images: LabeledImages, row: int) -> Looks:
            bar.update()
            return looks_of(images.images[row])

        index = KnownImages(read(train, row) for row in range(len(train)))
        looks += [read(test, row) for row in range(len(looks), len(test))]
    for row, of_row in enumerate(looks):
        found = index.find(of_row)
        reasons = {reason: (found[reason], words) for reason, words in SAME.items() if reason in found}
        group = test.groups[row] if test.groups else None
        if group is not None and group in groups:
            reasons = {"same_group": (groups[group], f"both are of {group!r}")} | reasons
        for partner, words in list(reasons.values())[:1]:
            copies.append(Copy(test.names[row], train.names[partner], words, partner))
    return copies


def _first_rows(values: Sequence[Any]) -> dict[Any, int]:
    """Return the first row of each value that is not None."""
    return {value: row for row, value in reversed([*enumerate(values)]) if value is not None}


def _images_of(benchmark: ClassificationBenchmark | VisualQuestionBenchmark) -> tuple[list[str], Any, list[str | None]]:
    """Return the names, images and groups of the images of a split."""
    if isinstance(benchmark, VisualQuestionBenchmark):
        by_name = {asked.image_name: asked.image for asked in benchmark.questions}
        return list(by_name), list(by_name.values()), [None] * len(by_name)
    images = benchmark.images
    return list(images.names), images.images, [*images.groups] if images.groups else [None] * len(images)


def _read(names: Sequence[str], images: Any, split: str, leaks: Leaks, bar: Any) -> Iterator[Looks]:
    """Yield what each image is compared by, and list those that cannot be read."""
    for row, name in enumerate(names):
        looks = looks_of(images[row])
        if looks.error:
            leaks.unreadable.append(f"{split}: {name} ({looks.error})")
        bar.update()
        yield looks

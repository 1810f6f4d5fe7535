"""Find images of a test split that are also in the training split."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tqdm.auto import tqdm

from ..images.perceptual_hash import perceptual_hash
from ..images.reading import ImageError, read_row_image
from ..pmc.images import ImageIndex
from .benchmark import ClassificationBenchmark, VisualQuestionBenchmark
from .fingerprint import content_of


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
        same_picture: Test images that look like a training image, by perceptual hash. This includes renamed, resized or
            converted images, and similar images such as slices of one volume.
        leaked: Test images to which any of these reasons applies.
        unreadable: Names of images that cannot be read. Their perceptual hashes were not compared.
        examples: For each reason, up to `EXAMPLES_SHOWN` pairs of a test and a training image.
    """

    train_images: int
    test_images: int
    same_group: int | None = None
    same_name: int | None = None
    same_bytes: int = 0
    same_picture: int = 0
    leaked: int = 0
    unreadable: list[str] = field(default_factory=list)
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary for JSON."""
        return asdict(self)


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
    # For each reason, maps the compared value to the name of the first training image that has it.
    pairs = zip(reversed(train_groups), reversed(train_names), strict=True)
    groups: dict[str | None, str] = {group: name for group, name in pairs if group is not None}
    names = {name: name for name in train_names} if are_questions else {}
    files: dict[bytes, str] = {}
    pictures: dict[str, str] = {}
    total = len(train_names) + len(test_names)
    with tqdm(total=total, desc="Leaks", unit="image", disable=not progress, dynamic_ncols=True) as bar:
        for name, digest, looks in _compared(train_names, train_images, train.split, leaks):
            bar.update()
            if digest:
                files.setdefault(digest, name)
            if looks:
                pictures.setdefault(looks, name)
        index = ImageIndex(pictures)
        compared = _compared(test_names, test_images, test.split, leaks)
        for group, (name, digest, looks) in zip(test_groups, compared, strict=True):
            bar.update()
            partners = {
                "same_group": groups.get(group),
                "same_name": names.get(name),
                "same_bytes": files.get(digest),
                "same_picture": pictures.get(index.nearest(looks) or ""),
            }
            found = {reason: partner for reason, partner in partners.items() if partner is not None}
            leaks.leaked += bool(found)
            for reason, partner in found.items():
                setattr(leaks, reason, getattr(leaks, reason) + 1)
                examples = leaks.examples.setdefault(reason, [])
                if len(examples) < EXAMPLES_SHOWN:
                    examples.append({"test": name, "train": partner})
    return leaks


def _images_of(benchmark: ClassificationBenchmark | VisualQuestionBenchmark) -> tuple[list[str], Any, list[str | None]]:
    """Return the names, images and groups of the images of a split."""
    if isinstance(benchmark, VisualQuestionBenchmark):
        by_name = {asked.image_name: asked.image for asked in benchmark.questions}
        return list(by_name), list(by_name.values()), [None] * len(by_name)
    images = benchmark.images
    return list(images.names), images.images, [*images.groups] if images.groups else [None] * len(images)


def _compared(names: Sequence[str], images: Any, split: str, leaks: Leaks) -> Iterator[tuple[str, bytes, str]]:
    """Yield the name, the hash of the file, and the perceptual hash of each image. Hashes may be empty."""
    for number, name in enumerate(names):
        image = images[number]
        content = content_of(image)
        digest, looks = hashlib.blake2b(content, digest_size=16).digest() if content else b"", ""
        try:
            looks = perceptual_hash(read_row_image(image))
        except ImageError as error:
            leaks.unreadable.append(f"{split}: {name} ({error})")
        yield name, digest, looks

"""Leaks: what of a test split a model has already seen in the training split."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tqdm.auto import tqdm

from ..images.perceptual_hash import perceptual_hash
from ..images.reading import ImageError, read_row_image
from ..pmc.pictures import PictureIndex
from .benchmark import ClassificationBenchmark, VisualQuestionBenchmark
from .fingerprint import content_of


EXAMPLES_SHOWN = 10


@dataclass
class Leaks:
    """What two splits share. One test image may be counted under several headings.

    Args:
        train_images: Distinct by name.
        test_images: Likewise.
        same_group: Test images of a patient, slide or source that is in training too; `None` where groups are not
            known.
        same_name: Test images that training has under the same name, which for questions means the same image; `None`
            for classification, where names are of one split.
        same_bytes: Test images whose file, or array, is byte for byte one of training's.
        same_picture: Test images that look (nearly) like one of training's, by perceptual hash: also if one was
            renamed, resized or saved in another format, or if two are of a kind (tiles, slices of one volume).
        leaked: Test images under any of these headings.
        unreadable: Names of images of either split that cannot be read and were not compared by their looks.
        examples: For each heading, a few pairs of test and training image.
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
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Image:
    """An image by its place: one out of an array is made each time that it is asked for, and not kept."""

    name: str
    group: str | None
    images: Sequence[Any]
    number: int


def find_leaks(
    train: ClassificationBenchmark | VisualQuestionBenchmark,
    test: ClassificationBenchmark | VisualQuestionBenchmark,
    *,
    progress: bool = False,
) -> Leaks:
    """Compares two splits of a benchmark, image by image.

    Args:
        train: The split that a model learns from.
        test: The split that it is judged by.
        progress: Show a bar.

    Returns:
        Counts and examples. Finding (nearly) the same pictures reads and decodes every image once.

    Example:
    ```python
    >>> from biomedclip.processing import load_benchmark
    >>> from biomedclip.processing.benchmarks.leaks import find_leaks

    >>> find_leaks(load_benchmark("vqa_rad", "vqa_rad", split="train"), load_benchmark("vqa_rad", "vqa_rad"))
    ```
    """
    learned, judged = _images_of(train), _images_of(test)
    leaks = Leaks(train_images=len(learned), test_images=len(judged))
    # What training has, by heading: from the value that is compared to the name of an image.
    groups = {entry.group: entry.name for entry in reversed(learned) if entry.group is not None}
    names = {entry.name for entry in learned} if isinstance(test, VisualQuestionBenchmark) else set()
    files: dict[bytes, str] = {}
    pictures: dict[str, str] = {}
    bar = tqdm(total=len(learned) + len(judged), desc="Leaks", unit="image", disable=not progress, dynamic_ncols=True)
    with bar:
        for entry in learned:
            digest, looks = _compared(entry, train.split, leaks)
            bar.update()
            if digest:
                files.setdefault(digest, entry.name)
            if looks:
                pictures.setdefault(looks, entry.name)
        index = PictureIndex(pictures)
        found: dict[str, list[dict[str, str]]] = {}
        leaked = 0
        for entry in judged:
            digest, looks = _compared(entry, test.split, leaks)
            bar.update()
            partners = {
                "same_group": groups.get(entry.group) if entry.group is not None else None,
                "same_name": entry.name if entry.name in names else None,
                "same_bytes": files.get(digest) if digest else None,
                "same_picture": pictures.get(index.nearest(looks) or ""),
            }
            for heading, partner in partners.items():
                if partner is not None:
                    found.setdefault(heading, []).append({"test": entry.name, "train": partner})
            leaked += any(partner is not None for partner in partners.values())
    leaks.leaked = leaked
    leaks.same_bytes, leaks.same_picture = (len(found.get(name, ())) for name in ("same_bytes", "same_picture"))
    if isinstance(test, VisualQuestionBenchmark):
        leaks.same_name = len(found.get("same_name", ()))
    if groups and any(entry.group is not None for entry in judged):
        leaks.same_group = len(found.get("same_group", ()))
    leaks.examples = {heading: pairs[:EXAMPLES_SHOWN] for heading, pairs in found.items()}
    return leaks


def _images_of(benchmark: ClassificationBenchmark | VisualQuestionBenchmark) -> list[_Image]:
    images: Sequence[Any]
    if isinstance(benchmark, VisualQuestionBenchmark):
        by_name = {asked.image_name: asked.image for asked in benchmark.questions}
        names, images, groups = list(by_name), list(by_name.values()), None
    else:
        names, images, groups = benchmark.images.names, benchmark.images.images, benchmark.images.groups
    return [_Image(name, groups[number] if groups else None, images, number) for number, name in enumerate(names)]


def _compared(entry: _Image, split: str, leaks: Leaks) -> tuple[bytes | None, str]:
    """Digest of the file, and perceptual hash."""
    image = entry.images[entry.number]
    content = content_of(image)
    digest = hashlib.blake2b(content, digest_size=16).digest() if content else None
    try:
        return digest, perceptual_hash(read_row_image(image))
    except ImageError as error:
        leaks.unreadable.append(f"{split}: {entry.name} ({error})")
        return digest, ""


__all__ = ["EXAMPLES_SHOWN", "Leaks", "find_leaks"]

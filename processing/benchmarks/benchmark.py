"""What a benchmark is once it is read: images with labels, questions with answers, or images with captions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..images.labeled import LabeledImages


@dataclass(frozen=True)
class ClassificationBenchmark:
    """A split of labeled images, what its classes are called in prompts, and what was published about it.

    Args:
        name: As [`load_benchmark`] takes it.
        split: `train`, `validation` or `test`.
        path: As it was given.
        images: Read when asked for; `groups` holds the patient or source of each image, where it is known.
        classes: Labels in their order, also those that no image of this split has.
        class_names: What each class is called in prompts.
        templates: Prompts with `{}` where the name of the class goes: the chosen set.
        template_sets: All sets, by name.
        positive: The class that AUROC and average precision of a two-class set are about.
        metric: The one that is published.
        paper: Published values of zero-shot classification as fractions, by metric; of the test split only.
        source: Where prompts and values come from.
        fingerprint: Of the names and labels of all images, the sizes of their files, and the contents of
            `CONTENTS_IN_FINGERPRINT` of them, evenly spread.
        notes: What a reader of the result has to know about this data.
        paper_of_linear_probe: Published values of the linear probe; of the test split only.
        selection: Images that were chosen and their counts, where there is a choice: study, rule of the split, number
            and share of positive images.
    """

    name: str
    split: str
    path: str
    images: LabeledImages
    classes: list[str]
    class_names: list[str]
    templates: list[str]
    template_sets: dict[str, list[str]]
    positive: str | None
    metric: str
    paper: dict[str, float]
    source: str
    fingerprint: str
    notes: list[str] = field(default_factory=list)
    paper_of_linear_probe: dict[str, Any] = field(default_factory=dict)
    selection: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class VisualQuestion:
    """A question about an image.

    Args:
        question: As it is written, without blanks at its ends.
        answer: Likewise; numbers as text. How answers are compared is for the metric to say.
        answer_type: `closed` where the data set says that the answers to choose from are few and known (yes, no).
        image: What [`read_row_image`] takes.
        image_name: The same for all questions about an image.
        name: Identifies the question in its data set.
    """

    question: str
    answer: str
    answer_type: Literal["open", "closed"]
    image: Any
    image_name: str
    name: str


@dataclass(frozen=True)
class VisualQuestionBenchmark:
    """A split of questions about images, and what was published about it.

    Args:
        name: As [`load_benchmark`] takes it.
        split: `train`, `validation` or `test`.
        path: As it was given.
        questions: In the order of the file.
        paper: Published values as fractions, by metric; of the test split only.
        source: Where the values come from.
        fingerprint: Of all questions and answers, the sizes of the images' files, and the contents of
            `CONTENTS_IN_FINGERPRINT` of them, evenly spread.
        notes: What a reader of the result has to know about this data.
    """

    name: str
    split: str
    path: str
    questions: list[VisualQuestion]
    paper: dict[str, float]
    source: str
    fingerprint: str
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.questions)


@dataclass(frozen=True)
class RetrievalBenchmark:
    """A split of images with captions, and what was published about it.

    Args:
        name: As [`load_benchmark`] takes it.
        split: `train`, `validation` or `test`.
        path: As it was given.
        pairs: Rows with `pair_id`, `pmcid`, `image` (what [`read_row_image`] takes) and `caption`.
        paper: Published values by direction and metric, of the test and the validation split. They can be compared only
            with values among `published_pairs` pairs.
        source: Where the values come from.
        fingerprint: Of the names of all pairs.
        notes: What a reader of the result has to know about this data.
        published_pairs: Number of pairs among which the published values were measured.
    """

    name: str
    split: str
    path: str
    pairs: Sequence[dict[str, Any]]
    paper: dict[str, Any]
    source: str
    fingerprint: str
    notes: list[str] = field(default_factory=list)
    published_pairs: int | None = None

    def __len__(self) -> int:
        return len(self.pairs)


__all__ = ["ClassificationBenchmark", "RetrievalBenchmark", "VisualQuestion", "VisualQuestionBenchmark"]

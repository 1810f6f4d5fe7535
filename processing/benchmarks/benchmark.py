"""The types of benchmarks: labeled images, questions about images, and images with captions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..images.labeled import LabeledImages


@dataclass(frozen=True)
class VisualQuestion:
    """A question about an image, with its answer.

    Args:
        question: Text of the question, without leading and trailing spaces.
        answer: Text of the answer, without leading and trailing spaces. Numbers are converted to text.
        answer_type: `closed` if the dataset has few possible answers to the question, such as yes and no.
        image: An image that [`read_row_image`] accepts.
        image_name: Name of the image. Questions about the same image have the same name.
        name: Unique name of the question.
        kind: What the question is about, such as `MODALITY`, as the dataset states it. Empty if it does not.
    """

    question: str
    answer: str
    answer_type: Literal["open", "closed"]
    image: Any
    image_name: str
    name: str
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A split of a benchmark.

    Args:
        name: Name in `benchmarks.yaml`.
        split: `train`, `validation` or `test`.
        path: Path of the files.
        paper: Values from BiomedCLIP's paper as fractions, by metric. Empty if the paper used other data.
        source: Source of prompts and published values.
        fingerprint: Hash of the content. It does not depend on the path.
        notes: Notes on the data, which are shown with each result.
        selection: Options that chose the rows, and the numbers of rows that they chose.
    """

    name: str
    split: str
    path: str
    paper: dict[str, Any]
    source: str
    fingerprint: str
    notes: list[str] = field(default_factory=list)
    selection: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ClassificationBenchmark(Benchmark):
    """A split of labeled images.

    Args:
        images: The images and their labels.
        classes: All labels in their order, including those without images in this split.
        class_names: Name of each class in prompts.
        templates: Selected prompt templates, with `{}` for the class name.
        template_sets: All template sets, by name.
        positive: Positive class for AUROC and average precision with two classes.
        metric: The metric that the paper reports.
        paper_of_linear_probe: Values of the linear probe in the paper.
    """

    images: LabeledImages
    classes: list[str]
    class_names: list[str]
    templates: list[str]
    template_sets: dict[str, list[str]]
    positive: str | None
    metric: str
    paper_of_linear_probe: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, kw_only=True)
class VisualQuestionBenchmark(Benchmark):
    """A split of questions about images, in the order of the file."""

    questions: list[VisualQuestion]

    def __len__(self) -> int:
        return len(self.questions)


@dataclass(frozen=True, kw_only=True)
class RetrievalBenchmark(Benchmark):
    """A split of images with captions.

    Args:
        pairs: Rows with `pair_id`, `pmcid`, `image` (any form that [`read_row_image`] accepts) and `caption`.
        published_pairs: Number of pairs on which the published values were measured.
    """

    pairs: Sequence[dict[str, Any]]
    published_pairs: int | None = None

    def __len__(self) -> int:
        return len(self.pairs)


@dataclass(frozen=True)
class Content:
    """The content of a split, as a reader returns it: labeled images, questions, or rows of pairs.

    `notes` are added to those of `rows`. `facts` replace values of `benchmarks.yaml`, such as `{"paper": {}}`.
    """

    rows: Any
    notes: list[str] = field(default_factory=list)
    selection: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

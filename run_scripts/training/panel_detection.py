"""Train the network that finds the panels of compound figures, on figures that are drawn during training.

biomedclip train --config panel_detector --train-data out --output-dir detector
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForObjectDetection

from biomedclip import PanelDetectionConfig, PanelDetectionModel
from biomedclip.processing import PanelDetectionImageProcessor
from biomedclip.processing.panels.annotations import AnnotatedFigure, read_annotations
from biomedclip.processing.panels.detection import PanelDetector
from biomedclip.processing.panels.image_types import IMAGE_TYPES
from biomedclip.processing.panels.scores import average_precision, judge
from biomedclip.processing.panels.singles import (
    SingleFigure,
    is_held_out,
    singles_of_annotation,
    singles_of_dataset,
    singles_of_folder,
)
from biomedclip.processing.panels.synthesis.examples import DrawnFigures, collate
from biomedclip.processing.panels.synthesis.labels import CLASSES

from ..cli.fields import REQUIRED, option
from ..cli.progress import counting
from ..cli.reporting import show_table
from . import runs, supervised
from .adapters import AdapterOptions
from .runs import check_checkpoint, cost_rows, run_and_save, start_run
from .supervised import SupervisedArguments, SupervisedData, SupervisedTrainer
from .trackers import check_trackers


logger = logging.getLogger(__name__)

TASK = "panel-detection"
EXAMPLE = """biomedclip train --config panel_detector --train-data out \\
      --photographs scans --output-dir detector"""
GROUPS = {
    "data": "task train_data photographs annotations annotated_share type_balance leave_out figures plots "
    "validation_figures dataloader_num_workers",
    "model": "model_name_or_path trust_remote_code",
    **supervised.GROUPS,
}
ALTERNATIVES = runs.ALTERNATIVES
LEAST = 0.01  # score of a box that counts for the average precision: weaker ones do not change it


@dataclass(kw_only=True)
class PanelData(SupervisedData):
    """Single figures to draw compound ones from, and the network to start from."""

    train_data: str = option(REQUIRED, "Dataset that biomedclip build wrote. Its single figures are used.")
    model_name_or_path: str = option("", "Panel detector to continue with (default: a new one).")
    task: str = option(TASK, "Training task.")
    photographs: list[str] = option(
        [], "Folders of photographs or scans to draw panels from. 'FOLDER=TYPE' names the type of all its images."
    )
    annotations: list[str] = option(
        [], "Real figures with their panels, as 'TABLE=FOLDER': a table of boxes and the folder of its pictures."
    )
    leave_out: str | None = option(
        None,
        "Text file with one PMCID/FILE per line: figures of the dataset and of tables that are not used, such as a "
        "test set.",
    )
    annotated_share: float = option(0.2, "Part of the figures that are annotated compound ones (default: 0.2).")
    type_balance: float = option(
        0.75,
        "How often single figures of rare types are chosen (default: 0.75). With 0, each single figure is as probable "
        "as any other; with 1, each type.",
    )
    figures: int = option(60_000, "Number of figures to draw for an epoch (default: 60000).")
    plots: int = option(2000, "Number of different plots to draw panels from (default: 2000).")
    validation_figures: int = option(200, "Number of drawn figures of held-out articles to evaluate (default: 200).")

    def __post_init__(self):
        for name in ("figures", "plots"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("annotated_share", "type_balance"):
            if not 0 <= getattr(self, name) <= 1:
                option_name = name.replace("_", "-")
                raise ValueError(f"--{option_name} must be between 0 and 1, not {getattr(self, name)}.")
        if self.validation_figures < 0:
            raise ValueError(f"--validation-figures must be at least 0, not {self.validation_figures}.")


OPTION_CLASSES = [PanelData, AdapterOptions, SupervisedArguments]


def run(
    data: PanelData, adapter: AdapterOptions, args: SupervisedArguments
) -> tuple[SupervisedTrainer, dict[str, Any]]:
    """Train and save a panel detector, evaluate it on drawn figures of held-out articles, and return both."""
    if adapter.lora_rank is not None:
        raise ValueError("--lora-rank has no effect: the panel detector is small and trained as a whole. Omit it.")
    trust = data.trust_remote_code
    check_checkpoint(data.model_name_or_path, trust_remote_code=trust)
    check_trackers(args)
    without = left_out(data)
    annotated = read_annotated(data, without)
    singles = read_singles(data, annotated, without)
    checkpoint = start_run(args, [data, adapter], task=TASK)
    if not data.model_name_or_path:
        config = PanelDetectionConfig(printed_labels=list(CLASSES), image_types=list(IMAGE_TYPES))
        model = PanelDetectionModel(config)
    else:
        # Weights may be saved in float16, in which training would soon fail.
        model = AutoModelForObjectDetection.from_pretrained(
            data.model_name_or_path, dtype=torch.float32, trust_remote_code=trust
        )
    model.to(memory_format=torch.channels_last)  # with bfloat16, four times as fast on CPUs
    training = [single for single in singles if not single.held_out]
    compound = [figure for figure in annotated if figure.compound and not is_held_out(figure.article)]
    options: dict[str, Any] = {"plots": data.plots, "side": model.config.image_size, "balance": data.type_balance}
    trainer = SupervisedTrainer(
        model,
        args,
        train_dataset=DrawnFigures(
            training,
            data.figures,
            seed=args.seed,
            annotated=compound,
            annotated_share=data.annotated_share,
            **options,
        ),
        data_collator=_Collator(),
        processing_class=PanelDetectionImageProcessor(size=dict.fromkeys(("height", "width"), model.config.image_size)),
    )

    def measure() -> dict[str, Any]:
        held_out = [single for single in singles if single.held_out]
        numbers: dict[str, Any] = {"single_figures": len(training), "annotated_compound_figures": len(compound)}
        numbers["held_out_single_figures"] = len(held_out)
        if not data.validation_figures:
            return numbers
        # Figures and plots that training has not seen have another seed.
        drawn = DrawnFigures(held_out, data.validation_figures, seed=args.seed + 1_000_003, **options)
        return {**numbers, "validation": measure_drawn(trainer, drawn)}

    return trainer, run_and_save(trainer, checkpoint, adapter, measure, data=data.train_data)


class _Collator:
    """[`collate`] with the attributes that the trainer reads. Drawn figures have no bad rows and no other crops."""

    substituted_rows = 0

    def __call__(self, examples: Sequence[Any]) -> dict[str, Any]:
        return collate(examples)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing."""


def read_annotated(data: PanelData, without: Collection[str]) -> list[AnnotatedFigure]:
    """Return the annotated figures of all tables, except those with the names `without`."""
    figures = []
    for wanted in data.annotations:
        table, equals, folder = wanted.rpartition("=")
        if not equals:
            raise ValueError(
                f"--annotations {wanted}: it must be a table and the folder of its pictures, TABLE=FOLDER."
            )
        figures += read_annotations(Path(table), Path(folder))
    kept = [figure for figure in figures if _name_of(figure) not in without]
    if len(kept) < len(figures):
        logger.info("--leave-out %s: %d annotated figures are left out", data.leave_out, len(figures) - len(kept))
    return kept


def left_out(data: PanelData) -> set[str]:
    """Return the names of the figures that must not be seen, `PMCID/FILE` or only `FILE` if the article is unknown."""
    if data.leave_out is None:
        return set()
    path = Path(data.leave_out)
    if not path.is_file():
        raise FileNotFoundError(f"--leave-out {path}: the file does not exist.")
    names = {line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()}
    if not names:
        raise ValueError(f"--leave-out {path}: the file is empty. Each line must be PMCID/FILE, or omit the option.")
    return names


def _name_of(figure: AnnotatedFigure) -> str:
    name = Path(figure.name).name
    # An unknown article has the name of the figure. PanelSeg puts a known one before the name.
    return name if figure.article == name else f"{figure.article}/{name.removeprefix(f'{figure.article}_')}"


def read_singles(data: PanelData, annotated: Sequence[AnnotatedFigure], without: Collection[str]) -> list[SingleFigure]:
    """Return the single figures of the dataset, the annotations and the folders. Annotations replace the dataset's.

    Figures of the dataset with the names `without` are left out.
    """
    names = {*without, *map(_name_of, annotated)}
    singles = list(singles_of_dataset(Path(data.train_data), names))
    singles += [single for figure in annotated for single in singles_of_annotation(figure)]
    for wanted in data.photographs:
        folder, _, image_type = wanted.partition("=")
        if image_type and image_type not in IMAGE_TYPES:
            raise ValueError(f"--photographs {wanted}: {image_type!r} is no type of {', '.join(IMAGE_TYPES)}.")
        singles += singles_of_folder(Path(folder), image_type or None)
    if not any(not single.held_out for single in singles):
        raise ValueError(f"--train-data {data.train_data}: no figure seems to have a single panel.")
    return singles


def measure_drawn(trainer: SupervisedTrainer, drawn: DrawnFigures) -> dict[str, Any]:
    """Return the scores on drawn figures.

    `average_precision` is that of all boxes of the network, as COCO measures detectors. The other scores are those of
    the panels that [`PanelDetector`] returns, which are fewer.
    """
    detect = PanelDetector(trainer.model, trainer.processing_class)
    candidates, found, truth, compound = list[Any](), list[Any](), list[Any](), list[bool]()
    with counting(len(drawn), "Validation", "figure") as advance:
        for number in range(len(drawn)):
            figure = drawn.figure(number)
            outputs = detect.outputs_of([figure.image])
            candidates += detect.image_processor.post_process_object_detection(
                outputs, threshold=LEAST, target_sizes=[figure.image.size[::-1]]
            )
            found += detect.figures_of(outputs, [figure.image])
            truth.append([panel.box for panel in figure.panels])
            compound.append(figure.is_compound)
            advance(1)
    of_panels = judge(
        [[panel.box for panel in figure.panels] for figure in found],
        [[panel.score for panel in figure.panels] for figure in found],
        truth,
    )
    return {
        "figures": len(drawn),
        "average_precision": average_precision(
            [of_figure["boxes"].tolist() for of_figure in candidates],
            [of_figure["scores"].tolist() for of_figure in candidates],
            truth,
        ),
        "average_precision_of_panels": of_panels.average_precision(),
        "recall": float(of_panels.found.sum() / of_panels.gold.sum()),
        "precision": float(of_panels.found.mean()),
        "compound_accuracy": float(np.mean([figure.compound for figure in found] == np.array(compound))),
    }


def show_results(results: Mapping[str, Any]) -> None:
    """Print the scores on drawn figures, and the cost of the training."""
    validation = results.get("validation", {})
    rows = [(f"validation {name.replace('_', ' ')}", value) for name, value in validation.items()]
    show_table("Panel detection", [*rows, *cost_rows(results)], ["", "value"])

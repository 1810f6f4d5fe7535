"""Options of `biomedclip classify`."""

from dataclasses import dataclass

from biomedclip.processing.images.inputs import IMAGE_COLUMN

from ..cli.devices import DEVICE_HELP
from ..cli.fields import REQUIRED, WORKERS, image_root_option, option
from ..cli.output import FORMAT_HELP, FORMATS
from ..embedding.encoders import PRECISIONS
from .labels import DEFAULT_TEMPLATE


TOP_K = 5


@dataclass(kw_only=True)
class ClassifyOptions:
    """Options of `biomedclip classify`."""

    images: list[str] = option(
        REQUIRED,
        "Files, folders, patterns, - for paths on stdin, tables or datasets. Can be given without --images.",
    )
    model: str = option(REQUIRED, "Folder or Hub id of a dual encoder or a fine-tuned classifier, or an adapter.")
    labels: list[str] = option(
        [], "Labels, a text file with one per line, a YAML file with prompts, or taxonomy:imagetypes."
    )
    template: list[str] = option(
        [], f"Prompt with {{}} for the label; may be repeated (default: {DEFAULT_TEMPLATE!r})."
    )
    calibration: str | None = option(
        None,
        "File that biomedclip evaluate --calibrate wrote, or none (default: calibration.json of a fine-tuned model). "
        "Without --labels, its labels and prompts are used.",
    )
    top_k: int | None = option(None, f"Number of labels for each image (default: {TOP_K}).")
    wide: bool = option(False, "Write one row for each image, with one column of probabilities for each label.")
    format: str | None = option(None, FORMAT_HELP, FORMATS)
    output: str | None = option(None, "File for the predictions (default: stdout).")
    true_labels: str | None = option(None, "CSV file with the columns file and label, to measure the accuracy.")
    image_column: str = option(IMAGE_COLUMN, "Column of the images, or of their paths in a table (default: image).")
    image_root: str | None = image_root_option()
    batch_size: int = option(32, "Batch size (default: 32).")
    workers: int = option(WORKERS, f"Number of threads that read images (default: {WORKERS}).")
    saliency: str | None = option(None, "Folder for images that show which parts speak for the listed labels.")
    precision: str | None = option(
        None, "Precision of the model, also as bf16 (default: float32, or that of the export).", PRECISIONS
    )
    device: str = option("auto", DEVICE_HELP)

    def __post_init__(self):
        for name in ("top_k", "batch_size", "workers"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}.")
        if self.wide and self.top_k is not None:
            raise ValueError("--wide has a column for every label. Omit --top-k.")
        if self.template and not self.labels:
            raise ValueError("--template has no effect without --labels.")


__all__ = ["TOP_K", "ClassifyOptions"]

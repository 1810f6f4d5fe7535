"""Options of `biomedclip embed`, and checks of them."""

import dataclasses
import shutil
from dataclasses import dataclass

from biomedclip.processing.images.inputs import IMAGE_COLUMN

from ..cli.devices import DEVICE_HELP
from ..cli.errors import UsageError
from ..cli.fields import REQUIRED, WORKERS, image_root_option, option, trust_option
from .encoders import PRECISIONS
from .shards import DTYPES


EXECUTORS = ("local", "slurm", "ray")
MOST_TASKS = 16  # default
_OF_SLURM = ("slurm_partition", "slurm_time", "slurm_args")
_OF_TASKS = ("tasks", "retries", "memory_gb", *_OF_SLURM)
_OF_IMAGES = ("image_column", "image_root", "workers")
GROUPS = {
    "common": "model output images texts text_column image_column image_root update format dtype precision batch_size "
    "shard_size workers device trust_remote_code",
    "slurm and ray": "executor tasks retries memory_gb slurm_partition slurm_time slurm_args",
}


@dataclass(kw_only=True)
class EmbedOptions:
    """Options of `biomedclip embed`.

    Raises:
        ValueError: If an option has an invalid value or no effect.
    """

    model: str = option(REQUIRED, "Folder or Hub id of a dual encoder, or folder of an exported one.")
    output: str = option(REQUIRED, "Folder for the embeddings. A run that was killed continues in the same folder.")
    images: list[str] = option(
        [], "Images, folders, patterns, tables or datasets. - reads paths from stdin. Can be given without name."
    )
    texts: str | None = option(None, "Texts: a file with one per line, or CSV, JSON lines or Parquet.")
    text_column: str | None = option(None, "Column of the texts in CSV, JSON lines or Parquet.")
    image_column: str = option(IMAGE_COLUMN, "Column of the images, or of their paths in a table (default: image).")
    image_root: str | None = image_root_option()
    format: str = option("parquet", "npy also writes all embeddings as one NumPy file.", ["parquet", "npy"])
    dtype: str = option("float32", "Type of the stored numbers (default: float32).", DTYPES)
    precision: str | None = option(
        None, "Precision of the model, also as fp32 or bf16 (default: float32, or that of the export).", PRECISIONS
    )
    batch_size: int = option(32, "Number of images per batch (default: 32).")
    shard_size: int = option(2048, "Number of items per file, a multiple of the batch size (default: 2048).")
    workers: int = option(WORKERS, f"Number of threads that read images (default: 4, or fewer cores; here {WORKERS}).")
    device: str = option("auto", f"{DEVICE_HELP} On Slurm and Ray, only cuda reserves GPUs.")
    update: bool = option(
        False, "Add files for new inputs, and write files with changed image files or texts (not other columns) again."
    )
    trust_remote_code: bool = trust_option()
    executor: str = option("local", "Where to embed: this machine (local, the default), slurm or ray.", EXECUTORS)
    tasks: int | None = option(
        None, f"Number of tasks on Slurm or Ray (default: one for each file, at most {MOST_TASKS})."
    )
    retries: int = option(2, "Maximum number of retries for a failed task (default: 2).")
    memory_gb: int = option(4, "Memory in GB to reserve for a task on Slurm or Ray (default: 4).")
    slurm_partition: str | None = option(None, "Partition for the jobs. Required on Slurm.")
    slurm_time: str = option("24:00:00", "Time limit of a job (default: 24:00:00).")
    slurm_args: str | None = option(None, "Other options of sbatch, such as account=lab,qos=long.")

    def __post_init__(self) -> None:
        if not self.images and self.texts is None:
            raise ValueError("Pass images, --texts, or both.")
        if self.text_column is not None and self.texts is None:
            raise ValueError("--text-column requires --texts.")
        if self.batch_size < 1 or self.shard_size < 1 or self.shard_size % self.batch_size:
            raise ValueError("--shard-size must be a multiple of --batch-size, and both at least 1.")
        for name, least in (("workers", 1), ("tasks", 1), ("retries", 0), ("memory_gb", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, not {value}.")
        defaults = {known.name: known.default for known in dataclasses.fields(self)}
        without_effect = {"local": _OF_TASKS, "ray": _OF_SLURM, "slurm": ()}[self.executor]
        if given := [name for name in without_effect if getattr(self, name) != defaults[name]]:
            raise ValueError(f"--{given[0].replace('_', '-')} has no effect with --executor {self.executor}. Omit it.")
        # A task reserves as many cores as there are workers, also for texts.
        of_images = [name for name in _OF_IMAGES if name != "workers" or self.executor == "local"]
        if not self.images and (given := [name for name in of_images if getattr(self, name) != defaults[name]]):
            raise ValueError(f"--{given[0].replace('_', '-')} has no effect on texts. Omit it, or pass images.")
        if self.executor != "local" and self.device.startswith("cuda:"):
            raise ValueError(
                f"--device {self.device}: a task of --executor {self.executor} sees one GPU. Pass --device cuda."
            )
        if self.executor == "slurm" and self.slurm_partition is None:
            raise ValueError("--executor slurm requires --slurm-partition. The command sinfo lists the partitions.")


def check_processes(options: EmbedOptions, processes: int) -> None:
    """Raise `UsageError` if options do not fit the number of processes, or Slurm cannot be used."""
    if options.executor != "local" and processes > 1:
        raise UsageError(f"--executor {options.executor} starts its own processes. Run it without torchrun.")
    if "-" in options.images and (processes > 1 or options.executor != "local"):
        raise UsageError("Paths on stdin reach only one process. With several, pass files, folders or patterns.")
    if options.executor == "slurm" and shutil.which("sbatch") is None:
        raise UsageError("--executor slurm: sbatch was not found. Run the command on a machine that submits jobs.")

"""A training run of any task: where it starts from, and what it leaves."""

import configparser
import importlib.util
import json
import logging
import netrc
import os
import shutil
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from accelerate.utils import gather_object
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import TrainOutput

from biomedclip.source_checks import check_source

from ..cli.errors import UsageError
from ..cli.permissions import UmaskOnCheckpoints, apply_umask
from ..cli.reporting import peak_memory_mib, versions


logger = logging.getLogger(__name__)

# Where one of a group stands on the command line, a recipe's others do not count.
ALTERNATIVES = (("max_steps", "num_train_epochs"),)
TRACKERS = ("tensorboard", "trackio", "wandb")  # of the extra `tracking`
_COSTS = [
    "steps",
    "samples",
    "batch_size",
    "processes",
    "seconds",
    "samples_per_second",
    "step_samples_per_second",
    "loader_samples_per_second",
    "waiting_share",
    "loss",
    "parameters",
    "trainable_parameters",
    "trainable_share",
    "peak_memory_mib",
    "peak_device_memory_mib",
    "substituted_rows",
]


def run_training(trainer: Trainer, checkpoint: str | None) -> dict[str, Any]:
    """Trains, from the start or a checkpoint, and saves model and curves.

    A run that was cut off between its last step and its end is brought to its end.

    Args:
        trainer: The trainer, with its output folder.
        checkpoint: Folder of the checkpoint to go on from, if any.

    Returns:
        What the training took; speed and mean loss are those since the checkpoint. Memory is that of this process at
        its peak: resident, loading included, and what its tensors took on the accelerator, if there is one.

    Raises:
        ValueError: The checkpoint has done all steps.
    """
    args = trainer.args
    first_step = None if checkpoint is None else _step_of(checkpoint)
    if first_step is not None and 0 < args.max_steps <= first_step:
        if first_step > args.max_steps or not _lacks_its_model(args, str(checkpoint), first_step):
            raise ValueError(
                f"{checkpoint} has done {first_step} of {args.max_steps} steps: nothing is left to do. "
                "Raise --max-steps to go on."
            )
        logger.warning("%s has done all steps, but the run was cut off before its end: saving the model.", checkpoint)
        trainer.get_train_dataloader = list  # type: ignore[method-assign]  # Trainer takes a step of any that has rows
    trainer.add_callback(UmaskOnCheckpoints())
    output = _train(trainer, checkpoint)
    trainer.save_model()
    if args.should_save:
        apply_umask(Path(args.output_dir))
    trainer.save_state()
    batch_size = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    seconds = round(max(output.metrics["train_runtime"], 0.1), 1)
    parameters = list(trainer.model.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    on_device = args.device.type in ("cuda", "xpu")
    steps = trainer.state.global_step - (first_step or 0)
    return {
        "steps": trainer.state.global_step,
        "samples": trainer.state.global_step * batch_size,
        "seconds": seconds,
        "samples_per_second": round(steps * batch_size / seconds, 1),
        # Not `output.training_loss`: versions of Trainer differ in the number of steps that they divide by.
        "loss": trainer._total_loss_scalar / steps if steps else None,
        "batch_size": batch_size,
        "processes": args.world_size,
        "sharded": any(isinstance(parameter, DTensor) for parameter in parameters),
        "parameters": total,
        "trainable_parameters": trainable,
        "trainable_share": trainable / total,
        "peak_memory_mib": peak_memory_mib(),
        "peak_device_memory_mib": torch.accelerator.max_memory_allocated() // 2**20 if on_device else None,
        "resumed_from_step": first_step,
        "saved_checkpoint": saved_checkpoint(trainer),
        "versions": versions(),
    }


def saved_checkpoint(trainer: Trainer) -> dict[str, Any]:
    """Return which state of the training the saved model has: the best checkpoint on validation, or the last step.

    Args:
        trainer: The trainer, after training.

    Returns:
        `chosen` (`best` or `last`) and `step`; for `best` also `metric` and `value`.
    """
    args, state = trainer.args, trainer.state
    if args.load_best_model_at_end and state.best_model_checkpoint is not None:
        return {
            "chosen": "best",
            "step": state.best_global_step,
            "metric": args.metric_for_best_model,
            "value": state.best_metric,
        }
    return {"chosen": "last", "step": state.global_step}


def describe_checkpoint(saved: Mapping[str, Any]) -> str:
    """Return what [`saved_checkpoint`] returns as text for a table."""
    if saved["chosen"] == "last":
        return f"last, step {saved['step']:,}"
    return f"best {saved['metric']} on validation ({saved['value']:.4g}), step {saved['step']:,}"


def set_batch_size(args: TrainingArguments, batch_size: int | None, devices: int) -> None:
    """Shares a batch among the devices of a run.

    Args:
        args: What gets `per_device_train_batch_size`.
        batch_size: Pairs of a step over all devices; none to leave it as it is.
        devices: Devices of the run.

    Raises:
        UsageError: If the devices cannot share the batch evenly.
    """
    if batch_size is None:
        return
    if batch_size < 1 or batch_size % devices != 0:
        raise UsageError(
            f"--batch-size {batch_size} cannot be shared evenly by {devices} devices. Choose a multiple of {devices}, "
            "or another number of devices."
        )
    args.per_device_train_batch_size = batch_size // devices


def cost_rows(results: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Rows of the closing table: none on what was not measured, such as memory without an accelerator."""
    names = [name for name in _COSTS if results.get(name) is not None]
    return [(name.replace("_", " ").replace("mib", "MiB"), results[name]) for name in names]


def check_checkpoint(name: str | None, *, trust_remote_code: bool = False) -> None:
    """Check the name of a model to train before anything is read.

    Args:
        name: Folder or Hub id; none where the model is made of towers.
        trust_remote_code: Whether the user trusts the model.

    Raises:
        ValueError: If a file of the model has a setting that needs trust, see [`check_source`].
        FileNotFoundError: A name that is neither a folder nor can be an id on the Hub, which transformers would look
            for there at length.
    """
    if name and "/" not in name.removeprefix("./") and not Path(name).is_dir():
        raise FileNotFoundError(
            f"--model-name-or-path {name}: there is no such folder (and an id on the Hub would be owner/name)."
        )
    if name:
        check_source(name, trust_remote_code=trust_remote_code)


def check_trackers(args: TrainingArguments) -> None:
    """Check that the trackers of `--report-to` can start, before anything is loaded.

    Args:
        args: The training arguments; `report_to` is a list by now.

    Raises:
        UsageError: If transformers does not know a tracker.
        ImportError: If a tracker is not installed.
        OSError: If Weights & Biases has no API key and would send metrics to a server.
    """
    unknown = [name for name in args.report_to if name not in INTEGRATION_TO_CALLBACK]
    if unknown:
        known = ", ".join(INTEGRATION_TO_CALLBACK)
        raise UsageError(f"--report-to {' '.join(unknown)}: choose among {known}, or one of all and none.")
    missing = {name for name in args.report_to if not _is_installed(name)}
    if extra := sorted(missing & set(TRACKERS)):
        raise ImportError(f"--report-to {' '.join(extra)}: not installed. Do so by: pip install 'biomedclip[tracking]'")
    if missing:
        raise ImportError(
            f"--report-to {' '.join(sorted(missing))}: not installed. Install the package of the tracker."
        )
    if "wandb" in args.report_to and not _wandb_can_start():
        raise OSError(
            "--report-to wandb: no API key was found. Run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline "
            "to keep the metrics on this machine."
        )


def _is_installed(tracker: str) -> bool:
    # transformers leaves these two out of its list, or out of it beside mlflow.
    modules = {"flyte": "flytekit", "azure_ml": "azureml"}
    if tracker in modules:
        return importlib.util.find_spec(modules[tracker]) is not None
    return tracker in get_available_reporting_integrations()


def _wandb_can_start() -> bool:
    """Whether Weights & Biases has a key, or needs none: it looks in the environment, its settings and `.netrc`."""
    if getattr(sys.modules.get("wandb"), "run", None) is not None:
        return True
    settings = {"base_url": "https://api.wandb.ai"}
    user_settings = Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser() / "settings"
    for path in (user_settings, Path(os.environ.get("WANDB_DIR", ".")) / "wandb" / "settings"):
        parser = configparser.ConfigParser(interpolation=None)
        with suppress(configparser.Error, OSError):
            parser.read(path)
            settings |= dict(parser["default"]) if parser.has_section("default") else {}
    settings |= {name[6:].lower(): value for name, value in os.environ.items() if name.startswith("WANDB_") and value}
    if settings.get("mode") in ("offline", "dryrun", "disabled") or "disabled" in settings:
        return True
    if settings.get("api_key") or settings.get("identity_token_file"):
        return True
    names = [os.environ.get("NETRC") or "~/.netrc", "~/_netrc"]
    for name in names:
        with suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(os.path.expanduser(name)).authenticators(urlsplit(settings["base_url"]).netloc):
                return True
    return False


def _train(trainer: Trainer, checkpoint: str | None) -> TrainOutput:
    """Train, and name the tracker if one fails.

    Raises:
        OSError: If a tracker of `--report-to` raises an error, which has a type of its own.
    """
    try:
        return trainer.train(resume_from_checkpoint=checkpoint or False)
    except Exception as error:
        callbacks = {callback: name for name, callback in INTEGRATION_TO_CALLBACK.items()}
        for frame, _ in traceback.walk_tb(error.__traceback__):
            tracker = callbacks.get(type(frame.f_locals.get("self")))
            if tracker is not None:
                raise OSError(f"--report-to {tracker}: {type(error).__name__}: {error}") from error
        raise


def part_processes() -> None:
    """Ends the group of processes: one that is left to the end of the interpreter aborts it now and then."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def checkpoint_to_resume(args: TrainingArguments) -> str | None:
    """The checkpoint that `--resume-from-checkpoint` means: a path, or with `true` the last of the output folder.

    A checkpoint whose writing was cut off is left out, named in a warning, and cleared away.

    Raises:
        FileExistsError: Checkpoints of an earlier run in `output_dir`, and no word of resuming.
        FileNotFoundError: No such checkpoint, a part of one, or none that all processes see.
    """
    wanted = str(args.resume_from_checkpoint or "false")
    folders = [path for path in Path(args.output_dir).glob("checkpoint-*") if path.name.split("-")[1].isdecimal()]
    steps = {folder: _step_of(folder) for folder in folders}
    # Machines without a shared folder may have been killed one before and one after the end of a checkpoint.
    seen_by_each = gather_object([{folder.name for folder, step in steps.items() if step is not None}])
    checkpoint = None
    if wanted.lower() == "false":
        if any(seen_by_each):
            raise FileExistsError(
                f"{args.output_dir} holds checkpoints of an earlier run. Go on with --resume-from-checkpoint true, or "
                "choose another --output-dir."
            )
    elif wanted.lower() == "true":
        seen_by_all = set.intersection(*seen_by_each)
        if seen_by_all:
            last = max(seen_by_all, key=lambda name: int(name.split("-")[1]))
            checkpoint = str(Path(args.output_dir) / last)
        elif any(seen_by_each):
            raise FileNotFoundError(
                f"--resume-from-checkpoint: no checkpoint of {args.output_dir} is seen by all processes. The machines "
                "need a shared folder, or --save-on-each-node true from the start."
            )
        else:
            logger.warning("%s holds no checkpoint yet: training starts from the beginning.", args.output_dir)
    else:
        checkpoint = wanted
        if not Path(wanted).is_dir():
            raise FileNotFoundError(f"--resume-from-checkpoint {wanted}: there is no such folder.")
        if _step_of(wanted) is None:
            raise FileNotFoundError(
                f"--resume-from-checkpoint {wanted}: there is no whole trainer_state.json, so its writing was cut off. "
                "Take another one, or true for the last one that is whole."
            )
    if args.should_save:
        for folder in (folder for folder, step in steps.items() if step is None):
            logger.warning("The writing of %s was cut off: it is not used, and is cleared away.", folder)
            shutil.rmtree(folder)
    return checkpoint


def _lacks_its_model(args: TrainingArguments, checkpoint: str, steps: int) -> bool:
    """Whether a run has written its last checkpoint, but not `train_results.json`, which comes after its model."""
    output = Path(args.output_dir)
    try:
        finished = json.loads((output / "train_results.json").read_text(encoding="utf-8"))["steps"] == steps
    except (OSError, ValueError, KeyError):
        finished = False
    # All together: the first process writes that file, and may be ahead.
    return Path(checkpoint).resolve().parent == output.resolve() and not any(gather_object([finished]))


def _step_of(checkpoint: str | Path) -> int | None:
    """Step of a checkpoint, or none if it is not whole: the file that says so is the last to be written."""
    try:
        return json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
    except (OSError, ValueError, KeyError):
        return None

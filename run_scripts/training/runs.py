"""Start, resume and finish a training run of any task."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments, set_seed

from biomedclip.model_cards.adapter_card import fill_adapter_card
from biomedclip.source_checks import check_source
from biomedclip.trainer_adaptations import AdaptedTrainer

from ..cli.models import check_model_name
from ..cli.options import write_recipe
from ..cli.permissions import UmaskOnCheckpoints, apply_umask
from ..cli.progress import show_progress
from ..cli.reporting import peak_memory_mib, versions, write_json, write_text
from ..hub.card_facts import CARD, read_training
from .adapters import MERGED, AdapterOptions, check_merge, save_merged
from .trackers import tracker_errors


logger = logging.getLogger(__name__)

CONFIG = "config"  # folder of the model's configuration in the folder of an adapter
# Groups of options that exclude each other: the command line overrides all of a group in a recipe.
ALTERNATIVES = (("max_steps", "num_train_epochs"),)
_COSTS = """
    steps samples batch_size processes seconds samples_per_second step_samples_per_second loader_samples_per_second
    waiting_share loss parameters trainable_parameters trainable_share peak_memory_mib peak_device_memory_mib
    substituted_rows
""".split()


def run_training(trainer: AdaptedTrainer, checkpoint: str | None) -> dict[str, Any]:
    """Train from the start or from a checkpoint, and save the model and the training curves.

    If a run was killed after its last step, only the model is saved. In the results, speed and mean loss are measured
    since the checkpoint. Memory is the peak of this process: resident memory including loading, and the memory of
    tensors on the accelerator, if there is one.
    """
    args = trainer.args
    first_step = None if checkpoint is None else _step_of(checkpoint)
    if first_step is not None and 0 < args.max_steps <= first_step:
        if first_step > args.max_steps or not _lacks_its_model(args, str(checkpoint), first_step):
            raise ValueError(
                f"{checkpoint} has completed {first_step} of {args.max_steps} steps. Raise --max-steps to continue."
            )
        logger.warning("%s has completed all steps, but the model was not saved. Saving it now.", checkpoint)
    # The processes that load data are forks. tokenizers would warn that it switches off its threads in them.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    show_progress(trainer)
    trainer.add_callback(UmaskOnCheckpoints())
    with tracker_errors():
        output = trainer.train(resume_from_checkpoint=checkpoint or False)
    trainer.save_model()
    if args.should_save:
        apply_umask(Path(args.output_dir))
    trainer.save_state()
    batch_size = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    seconds = round(max(output.metrics["train_runtime"], 0.1), 1)
    parameters = list(trainer.model.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    steps = trainer.state.global_step - (first_step or 0)
    on_device = args.device.type in ("cuda", "xpu")
    return {
        "steps": trainer.state.global_step,
        "samples": trainer.state.global_step * batch_size,
        "seconds": seconds,
        "samples_per_second": round(steps * batch_size / seconds, 1),
        "loss": trainer.total_loss / steps if steps else None,
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


def run_and_save(
    trainer: AdaptedTrainer,
    checkpoint: str | None,
    adapter: AdapterOptions,
    measure: Callable[[], dict[str, Any]],
    base_config: Any = None,
    *,
    data: str,
) -> dict[str, Any]:
    """Train, and save the model, the results and the merged model. Return the content of `train_results.json`.

    `measure` returns additional results after the training. `base_config` is the configuration to save with an adapter,
    if its head is not part of the base model. `data` is the training data, which the card of an adapter names.
    """
    check_merge(trainer, adapter)
    results = run_training(trainer, checkpoint)
    results["substituted_rows"] = trainer.data_collator.substituted_rows
    results |= {"data": data} | measure()
    if trainer.is_world_process_zero():
        output_dir = Path(trainer.args.output_dir)
        write_json(output_dir / "train_results.json", results)
        if adapter.lora_rank is not None and base_config is not None:
            # In its own folder, because transformers treats a folder with a configuration as a complete model.
            base_config.save_pretrained(output_dir / CONFIG)
        if adapter.merge_adapter:
            save_merged(trainer.model, trainer.processing_class, output_dir / MERGED)
        if adapter.lora_rank is not None:
            config = trainer.model.peft_config["default"].to_dict()
            training = read_training(output_dir, None) or {}
            merged = MERGED if adapter.merge_adapter else None
            write_text(output_dir / CARD, fill_adapter_card(config, **training, data=data, merged=merged))
    return results


def saved_checkpoint(trainer: AdaptedTrainer) -> dict[str, Any]:
    """Return which training state was saved: the checkpoint with the best validation metric, or the last step."""
    args, state = trainer.args, trainer.state
    if args.load_best_model_at_end and state.best_model_checkpoint is not None:
        best = {"metric": args.metric_for_best_model, "value": state.best_metric}
        return {"chosen": "best", "step": state.best_global_step, **best}
    return {"chosen": "last", "step": state.global_step}


def describe_checkpoint(saved: Mapping[str, Any]) -> str:
    """Return the result of [`saved_checkpoint`] as text for a table."""
    if saved["chosen"] == "last":
        return f"last, step {saved['step']:,}"
    return f"best {saved['metric']} on validation ({saved['value']:.4g}), step {saved['step']:,}"


def cost_rows(results: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the rows of the final table of costs, without those that were not measured."""
    names = [name for name in _COSTS if results.get(name) is not None]
    # The names in JSON files are fixed.
    titles = {name: name.replace("_share", "_fraction").replace("_", " ").replace("mib", "MiB") for name in names}
    return [(titles[name], results[name]) for name in names]


def check_checkpoint(name: str | None, *, trust_remote_code: bool = False) -> None:
    """Check the name and the source of the model to train before anything is read."""
    if name:
        check_model_name(name, "--model-name-or-path")
        check_source(name, trust_remote_code=trust_remote_code)


def start_run(args: TrainingArguments, options: Sequence[Any], **also: Any) -> str | None:
    """Write the recipe of a run into its folder, set the random seed, and return the checkpoint to resume from."""
    checkpoint = checkpoint_to_resume(args)
    if args.bf16 and args.device.type == "cpu" and not cpu_has_bfloat16():
        logger.warning(
            "This CPU has no instructions for bfloat16, which it multiplies tens of times more slowly than float32. "
            "Pass --bf16 false."
        )
    if args.process_index == 0:
        write_recipe(args.output_dir, [*options, args], **also)
    set_seed(args.seed)
    return checkpoint


def cpu_has_bfloat16() -> bool:
    """Return whether PyTorch multiplies bfloat16 matrices with instructions of this CPU."""
    return not torch.backends.mkldnn.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def end_processes() -> None:
    """End the group of processes. Otherwise the interpreter sometimes aborts when it exits."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def checkpoint_to_resume(args: TrainingArguments) -> str | None:
    """Return the checkpoint that `--resume-from-checkpoint` selects, and remove incomplete ones with a warning.

    The option is a path, or `true` for the last complete checkpoint of `output_dir`. None means to train from the
    start.
    """
    wanted = str(args.resume_from_checkpoint or "false")
    folders = [path for path in Path(args.output_dir).glob("checkpoint-*") if path.name.split("-")[1].isdecimal()]
    steps = {folder: _step_of(folder) for folder in folders}
    # Without a shared folder, one machine may have been killed before it finished a checkpoint, and another one after.
    seen_by_each = gather_object([{folder.name for folder, step in steps.items() if step is not None}])
    checkpoint = None
    if wanted.lower() == "false":
        if any(seen_by_each):
            raise FileExistsError(
                f"{args.output_dir} contains checkpoints of an earlier run. Continue it with "
                "--resume-from-checkpoint true, or choose another --output-dir."
            )
    elif wanted.lower() == "true":
        seen_by_all = set.intersection(*seen_by_each)
        if seen_by_all:
            last = max(seen_by_all, key=lambda name: int(name.split("-")[1]))
            checkpoint = str(Path(args.output_dir) / last)
        elif any(seen_by_each):
            raise FileNotFoundError(
                f"--resume-from-checkpoint: no checkpoint of {args.output_dir} is visible to all processes. The "
                "machines need a shared folder, or --save-on-each-node true from the start."
            )
        else:
            logger.warning("%s contains no checkpoint yet. Training starts from the beginning.", args.output_dir)
    else:
        checkpoint = wanted
        if not Path(wanted).is_dir():
            raise FileNotFoundError(f"--resume-from-checkpoint {wanted}: the folder does not exist.")
        if _step_of(wanted) is None:
            raise FileNotFoundError(
                f"--resume-from-checkpoint {wanted}: the checkpoint is incomplete, it has no valid trainer_state.json. "
                "Pass another one, or true for the last complete one."
            )
    if args.should_save:
        for folder in (folder for folder, step in steps.items() if step is None):
            logger.warning("Removing the incomplete checkpoint %s.", folder)
            shutil.rmtree(folder)
    return checkpoint


def _lacks_its_model(args: TrainingArguments, checkpoint: str, steps: int) -> bool:
    """Return whether a run wrote its last checkpoint, but not `train_results.json`, which is written at the end."""
    output = Path(args.output_dir)
    try:
        finished = json.loads((output / "train_results.json").read_text(encoding="utf-8"))["steps"] == steps
    except (OSError, ValueError, KeyError):
        finished = False
    # All processes decide together, because the first process may already have written the file.
    return Path(checkpoint).resolve().parent == output.resolve() and not any(gather_object([finished]))


def _step_of(checkpoint: str | Path) -> int | None:
    """Return the step of a checkpoint, or None if it is incomplete."""
    try:
        return json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
    except (OSError, ValueError, KeyError):
        return None

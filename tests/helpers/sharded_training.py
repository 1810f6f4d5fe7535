"""Training with FSDP2 in processes, which import this module by its name."""

import os
import shutil
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from helpers.gradient_processes import some_batch, tiny_model
from torch.distributed.tensor import DTensor

from biomedclip import ContrastiveTrainer, ContrastiveTrainingArguments


# Runs without FSDP come first, because the environment variable of FSDP stays set.
WHOLE = {"ddp": {}, "ddp siglip": {"loss": "siglip"}}
SHARDED = {
    "fsdp": {"fsdp": True, "save_steps": 2},
    "fsdp cached": {"fsdp": True, "mini_batch_size": 3},
    "fsdp siglip": {"fsdp": True, "mini_batch_size": 3, "loss": "siglip"},
}


def training_of_a_process(rank: int, world_size: int, port: int, folder: str) -> None:
    """Train with each set of options, with 8 pairs per process, and save the results."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    results = {name: _train(Path(folder) / name, **options) for name, options in WHOLE.items()}
    try:
        _train(Path(folder) / "refused", fsdp=True)
    except ValueError as error:
        results["refused"] = str(error)
    let_accelerate_shard_on_the_cpu()
    results |= {name: _train(Path(folder) / name, **options) for name, options in SHARDED.items()}
    shutil.rmtree(Path(folder) / "fsdp" / "checkpoint-4", ignore_errors=True)
    results["fsdp resumed"] = _train(Path(folder) / "fsdp", resume=True, fsdp=True)
    # Last, because its environment variable stays set. Without a code generator, which would take a minute.
    compiled = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    results["fsdp compiled"] = _train(Path(folder) / "fsdp compiled", fsdp=True, mini_batch_size=3, **compiled)
    if rank == 0:
        torch.save(results, Path(folder) / "results.pt")
    torch.distributed.destroy_process_group()


def _train(folder: Path, resume: bool = False, **options) -> dict:
    rows = some_batch(64)
    args = ContrastiveTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        max_steps=4,
        logging_steps=1,
        learning_rate=1e-3,
        adam_epsilon=1e-4,  # the default turns the rounding of a small gradient into a step
        report_to="none",
        disable_tqdm=True,
        **options if "save_steps" in options else {"save_strategy": "no"} | options,
    )
    train_dataset = [{name: value[number] for name, value in rows.items()} for number in range(64)]
    trainer = ContrastiveTrainer(
        tiny_model(),
        args,
        train_dataset=train_dataset,
        eval_dataset=train_dataset[:11],
        evaluators=[_similarities_of_features],
    )
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2") if resume else None)
    if "mini_batch_size" in options:
        trainer.save_model(str(folder / "model"))
    # Compilation adds a prefix to the names.
    parameters = {name.removeprefix("_orig_mod."): value for name, value in trainer.model.named_parameters()}
    return {
        "evaluation": trainer.evaluate(),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "gradient norms": [float(entry["grad_norm"]) for entry in trainer.state.log_history if "loss" in entry],
        "sharded": {name for name, parameter in parameters.items() if isinstance(parameter, DTensor)},
        "weights": {
            name: (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach().clone()
            for name, parameter in parameters.items()
        },
    }


@torch.no_grad()
def _similarities_of_features(model) -> dict[str, float]:
    """Call the methods that zero-shot classification calls instead of `forward`."""
    rows = some_batch(3)
    images = model.get_image_features(pixel_values=rows.pop("pixel_values")).pooler_output
    texts = model.get_text_features(**rows).pooler_output
    return {f"similarity_{number}": value for number, value in enumerate((images * texts).sum(dim=1).tolist())}


def let_accelerate_shard_on_the_cpu() -> None:
    """Make accelerate use FSDP2 on the CPU, where it silently uses DDP although FSDP2 works."""
    initialize = AcceleratorState.__init__

    def initialize_sharded(self, *args, fsdp_plugin=None, **kwargs):
        initialize(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
        if self.__dict__.get("fsdp_plugin") is not None:
            self.distributed_type = DistributedType.FSDP

    AcceleratorState.__init__ = initialize_sharded

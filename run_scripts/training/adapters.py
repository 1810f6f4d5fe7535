"""LoRA: which layers of a model get an adapter, and the plain model that it can be merged into.

Both towers name their layers alike, so one list serves both, and CLIP's towers too. All of them by default, so that the
rank is all there is to choose. With as many trainable weights, a small model reached on held-out MedNIST after 60 steps
a cross-entropy of 0.184 by all layers, 0.189 by the attention alone and 0.206 by queries and values (learning rate
1e-3, mean of three seeds, the same order in each); at 4e-3 the three were equal within the spread of the seeds.

`logit_scale` stays frozen. It is no layer, so PEFT's format has no place for it, and an adapter whose temperature got
lost would load without a word; and the temperature of a trained model has little left to learn.
"""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from ..cli.permissions import apply_umask


# `fc1` and `fc2` are the feed-forward layers, and the text projection of BiomedCLIP, which is made of two such.
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
MERGED = "merged"  # folder of the merged model, in the run's
_ADAPTABLE = (nn.Linear, nn.Conv2d, nn.Embedding)


@dataclass
class AdapterOptions:
    """Whether all weights are trained, or LoRA adapters beside frozen ones."""

    lora_rank: int | None = field(
        default=None, metadata={"help": "Rank of LoRA adapters (default: train all weights)."}
    )
    lora_alpha: int | None = field(
        default=None, metadata={"help": "The adapters count lora_alpha / lora_rank times. Twice the rank if left out."}
    )
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout of what goes into an adapter."})
    lora_targets: list[str] = field(
        default_factory=lambda: list(LORA_TARGETS),
        metadata={"help": f"Layers that get an adapter, by name: {' '.join(LORA_TARGETS)} if left out."},
    )
    merge_adapter: bool = field(
        default=False, metadata={"help": f"Also save a plain model, the adapter merged into it, in {MERGED}/."}
    )

    def __post_init__(self):
        if self.lora_rank is None:
            unused = self.lora_alpha, self.lora_dropout or None, self.merge_adapter or None
            if any(value is not None for value in unused) or tuple(self.lora_targets) != LORA_TARGETS:
                raise ValueError("--lora-alpha, --lora-dropout, --lora-targets and --merge-adapter need --lora-rank.")
        elif self.lora_rank < 1:
            raise ValueError(f"--lora-rank must be 1 or more, not {self.lora_rank}.")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"--lora-dropout must be at least 0 and less than 1, not {self.lora_dropout}.")


def add_adapter(model: PreTrainedModel, options: AdapterOptions, *, trained_whole: Sequence[str] = ()) -> PeftModel:
    """Freezes a model and puts LoRA adapters beside its layers.

    Args:
        model: A model that was loaded from a checkpoint, which the adapter's files will name as their base.
        options: Rank and layers; a rank must be set.
        trained_whole: Modules that are trained and saved whole, such as a new classifier.

    Returns:
        The model with adapters that change nothing yet: one factor of each starts at zero.

    Raises:
        ValueError: No rank, a layer that the model does not have, or a model that is an adapter on another one already.
    """
    if options.lora_rank is None:
        raise ValueError("An adapter needs a rank: set lora_rank.")
    refuse_adapter(model)
    layers = [name for name, module in model.named_modules() if isinstance(module, _ADAPTABLE)]
    # PEFT's own rule; it is silent about a name that fits nothing as long as another one fits.
    unknown = [
        target for target in options.lora_targets if not any(f".{layer}".endswith(f".{target}") for layer in layers)
    ]
    if unknown:
        names = sorted({layer.rsplit(".", 1)[-1] for layer in layers} - set(trained_whole))
        raise ValueError(
            f"--lora-targets: {type(model).__name__} has no layer {', '.join(unknown)}. It has {', '.join(names)}."
        )
    config = LoraConfig(
        r=options.lora_rank,
        lora_alpha=2 * options.lora_rank if options.lora_alpha is None else options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=list(options.lora_targets),
        modules_to_save=list(trained_whole) or None,
    )
    with warnings.catch_warnings():  # PEFT reads a property that transformers renames
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(model, config)


def refuse_adapter(model: PreTrainedModel) -> None:
    """Raises:
    ValueError: The model was loaded from an adapter's folder: a second adapter, or a full training, would be saved
        without the first.
    """
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            "--model-name-or-path is an adapter. Start from its base model, or from the folder that a run with "
            f"--merge-adapter leaves in {MERGED}/."
        )


def refuse_sharded_merge(trainer: Any, options: AdapterOptions) -> None:
    """Raises:
    ValueError: The model is to be merged, but no process will hold the whole of it.
    """
    if options.merge_adapter and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise ValueError(
            "--merge-adapter needs the whole model in one process, which FSDP and DeepSpeed split. Leave it out, and "
            "merge the saved adapter afterwards: PeftModel.from_pretrained(base, adapter).merge_and_unload()."
        )


def save_merged(model: PeftModel, processor: Any, folder: Path) -> None:
    """Saves a plain model, which loads without PEFT: each layer's weight with the product of its adapter added.

    In float32 its outputs differ from those of model and adapter by rounding alone.

    Args:
        model: The model with its adapters; it stays as it is.
        processor: The processor that goes with it.
        folder: Where to save both.
    """
    # Merged where it is, the model would be of no use to whoever goes on with it.
    copy.deepcopy(model).merge_and_unload(safe_merge=True).save_pretrained(folder)
    processor.save_pretrained(folder)
    apply_umask(folder)


def what_is_where(output_dir: str, options: AdapterOptions) -> str:
    """What a run has left, in words: a model, or an adapter, or both, and the files beside them."""
    if options.lora_rank is None:
        model = f"Model in {output_dir}"
    else:
        merged = f", the merged model in {Path(output_dir) / MERGED}" if options.merge_adapter else ""
        model = f"Adapter in {output_dir}{merged}"
    return f"{model}, curves in trainer_state.json, figures in train_results.json, options in recipe.yaml"

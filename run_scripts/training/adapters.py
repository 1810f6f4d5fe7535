"""LoRA adapters: which layers get one, and the plain model that results from merging it.

Both encoders use the same layer names, and so do those of CLIP. One list of targets therefore fits all of them.
`logit_scale` stays frozen: it is not a layer, so the format of PEFT cannot store it.
"""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from ..cli.fields import option
from ..cli.permissions import apply_umask


# `fc1` and `fc2` are the feed-forward layers, and the two layers of BiomedCLIP's text projection.
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
MERGED = "merged"  # folder of the merged model in the folder of the run
LORA_OPTIONS = "lora_rank lora_alpha lora_dropout lora_targets merge_adapter"  # for `--help`
_ADAPTABLE = (nn.Linear, nn.Conv2d, nn.Embedding)


@dataclass
class AdapterOptions:
    """Options of LoRA."""

    lora_rank: int | None = option(None, "Rank of LoRA adapters (default: train all weights).")
    lora_alpha: int | None = option(None, "Adapters are scaled by lora_alpha / lora_rank (default: twice the rank).")
    lora_dropout: float = option(0.0, "Dropout of the inputs of the adapters (default: 0).")
    lora_targets: list[str] = option(
        list(LORA_TARGETS), f"Names of the layers that get an adapter (default: {' '.join(LORA_TARGETS)})."
    )
    merge_adapter: bool = option(False, f"Also save a plain model with the merged adapter in {MERGED}/.")

    def __post_init__(self):
        if self.lora_rank is None:
            unused = self.lora_alpha, self.lora_dropout or None, self.merge_adapter or None
            if any(value is not None for value in unused) or tuple(self.lora_targets) != LORA_TARGETS:
                raise ValueError("--lora-alpha, --lora-dropout, --lora-targets and --merge-adapter need --lora-rank.")
        elif self.lora_rank < 1:
            raise ValueError(f"--lora-rank must be at least 1, not {self.lora_rank}.")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"--lora-dropout must be at least 0 and less than 1, not {self.lora_dropout}.")


def add_adapter(model: PreTrainedModel, options: AdapterOptions, *, trained_whole: Sequence[str] = ()) -> Any:
    """Freeze a model and add LoRA adapters to its layers. They do not change its outputs before training.

    Without a rank, the model is returned unchanged. The modules `trained_whole`, such as a new head, are trained and
    saved in full.
    """
    if options.lora_rank is None:
        return model
    refuse_adapter(model)
    layers = [name for name, module in model.named_modules() if isinstance(module, _ADAPTABLE)]
    # PEFT raises an error only if none of the names matches.
    unknown = [
        target for target in options.lora_targets if not any(f".{layer}".endswith(f".{target}") for layer in layers)
    ]
    if unknown:
        names = sorted({layer.rsplit(".", 1)[-1] for layer in layers} - set(trained_whole))
        raise ValueError(
            f"--lora-targets: {type(model).__name__} has no layer {', '.join(unknown)}. Its layers are "
            f"{', '.join(names)}."
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
        adapted = get_peft_model(model, config)
    adapted.create_or_update_model_card = _write_no_card
    return adapted


def _write_no_card(output_dir: str) -> None:
    """Take the place of the method of PEFT that writes an empty template. The run writes a card at its end."""


def refuse_adapter(model: PreTrainedModel) -> None:
    """Check that a model was not loaded from an adapter, which would be lost when the model is saved."""
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            "--model-name-or-path is an adapter. Use its base model, or the folder "
            f"{MERGED}/ of a run with --merge-adapter."
        )


def check_merge(trainer: Any, options: AdapterOptions) -> None:
    """Check that each process has the whole model if adapters will be merged."""
    if options.merge_adapter and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise ValueError(
            "--merge-adapter does not work with sharded models. Omit it, and merge the saved adapter after training: "
            "PeftModel.from_pretrained(base, adapter).merge_and_unload()."
        )


def save_merged(model: PeftModel, processor: Any, folder: Path) -> None:
    """Save a plain model that loads without PEFT, with the adapters added to its weights.

    In float32, its outputs equal those of the model with adapters up to rounding.
    """
    copy.deepcopy(model).merge_and_unload(safe_merge=True).save_pretrained(folder)
    processor.save_pretrained(folder)
    apply_umask(folder)


def describe_output(output_dir: str, options: AdapterOptions) -> str:
    """Return a sentence about the files that a run has written."""
    if options.lora_rank is None:
        model = f"Model in {output_dir}"
    else:
        merged = f", the merged model in {Path(output_dir) / MERGED}" if options.merge_adapter else ""
        model = f"Adapter in {output_dir}{merged}"
    return f"{model}, curves in trainer_state.json, metrics in train_results.json, options in recipe.yaml"

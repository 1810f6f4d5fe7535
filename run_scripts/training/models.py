"""Load the model for contrastive training, or create it without weights for a dry run."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    CLIPConfig,
    CLIPTextConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    ViTConfig,
)

from biomedclip import BiomedCLIPConfig, BiomedCLIPModel, BiomedCLIPTextConfig
from biomedclip.configuration_biomedclip import text_config_class
from biomedclip.contrastive_loss import LOSSES, SIGLIP_LOGIT_BIAS, SIGLIP_LOGIT_SCALE
from biomedclip.contrastive_trainer import find_logit_bias
from biomedclip.conversion.vision_text import (
    changed_epsilon,
    from_vision_text_pretrained,
    text_config_of,
    vision_config_of,
)
from biomedclip.source_checks import check_source

from ..cli.fields import option, trust_option
from .adapters import refuse_adapter


logger = logging.getLogger(__name__)

# Configurations of the checkpoints in the recipes, so that a dry run does not need to download them.
KNOWN: dict[str, PreTrainedConfig] = {
    "google/vit-base-patch16-224": ViTConfig(),
    "google/vit-large-patch16-224": ViTConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16
    ),
    "WinKawaks/vit-small-patch16-224": ViTConfig(hidden_size=384, intermediate_size=1536, num_attention_heads=6),
    "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract": BertConfig(),
    "openai/clip-vit-base-patch16": CLIPConfig(vision_config={"patch_size": 16}),
}


@dataclass
class ModelOptions:
    """Options of the model to train: a checkpoint, or encoders from checkpoints or with random weights."""

    model_name_or_path: str | None = option(
        None, "Checkpoint to continue training from: BiomedCLIP, CLIP or another dual encoder."
    )
    vision_model: str | None = option(None, "ViT checkpoint for the image encoder.")
    text_model: str | None = option(None, "BERT checkpoint for the text encoder.")
    model_config: dict | str | None = option(
        None,
        "Fields of BiomedCLIPConfig, as JSON, for encoders with random weights (default: the published "
        "size). text_config.model_type=clip_text_model selects CLIP's text encoder.",
    )
    image_size: int | None = option(
        None, "Image size in pixels. The position embeddings of a checkpoint are interpolated."
    )
    patch_dropout: float | None = option(None, "Fraction of the patches of each image to drop at random in training.")
    lock_image_tower: bool = option(False, "Freeze the image encoder, as in LiT.")
    tokenizer: str | None = option(None, "Tokenizer (default: that of the checkpoint, or train one on the captions).")
    vocabulary_size: int = option(30522, "Maximum size of a vocabulary trained on the captions (default: 30522).")
    max_length: int | None = option(None, "Maximum number of tokens of a caption (default: that of the tokenizer).")
    trust_remote_code: bool = trust_option()

    def __post_init__(self):
        self.model_config = read_fields("--model-config", self.model_config)
        encoders = {"vision_model": self.vision_model, "text_model": self.text_model}
        if self.model_name_or_path and (any(encoders.values()) or self.model_config is not None):
            raise ValueError(
                "--model-name-or-path cannot be combined with --vision-model, --text-model or --model-config."
            )
        if self.model_name_or_path and self.tokenizer:
            raise ValueError("--tokenizer cannot be combined with --model-name-or-path, which has its own tokenizer.")
        source = self.model_name_or_path or self.tokenizer or self.text_model
        if source and self.vocabulary_size != ModelOptions.vocabulary_size:
            raise ValueError(f"--vocabulary-size has no effect: {source} has its own vocabulary. Omit it.")
        for name in ("image_size", "vocabulary_size", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {value}.")
        if self.patch_dropout is not None and not 0 <= self.patch_dropout < 1:
            raise ValueError(f"--patch-dropout must be at least 0 and less than 1, not {self.patch_dropout}.")
        for name, section in (("vision_model", "vision_config"), ("text_model", "text_config")):
            if encoders[name] and isinstance(self.model_config, dict) and self.model_config.get(section):
                raise ValueError(
                    f"--{name.replace('_', '-')} has its own configuration. Remove {section} from --model-config."
                )
        if _has_clip_text(self.model_config) and not self.tokenizer:
            raise ValueError(
                "text_config.model_type=clip_text_model requires --tokenizer: CLIP's text encoder pools the end of the "
                "text, which a vocabulary trained on the captions does not mark."
            )
        if self.lock_image_tower and self.patch_dropout:
            raise ValueError("--patch-dropout has no effect on a locked image encoder. Omit one of the two.")
        if self.lock_image_tower and not (self.model_name_or_path or self.vision_model):
            raise ValueError(
                "--lock-image-tower would freeze random weights. Start from --vision-model or --model-name-or-path."
            )


def load_model(
    options: ModelOptions, processor: ProcessorMixin, loss: str = LOSSES[0], *, adapted: bool = False
) -> PreTrainedModel:
    """Load the model that the options specify. Encoders without a checkpoint have random weights.

    `adapted` means that only an adapter is trained, and saved without the model.
    """
    trust = options.trust_remote_code
    for name in filter(None, (options.model_name_or_path, options.vision_model, options.text_model)):
        check_source(name, trust_remote_code=trust)
    if options.model_name_or_path:
        model = AutoModel.from_pretrained(options.model_name_or_path, dtype=torch.float32, trust_remote_code=trust)
        refuse_adapter(model)
    else:
        model = from_vision_text_pretrained(
            options.vision_model, options.text_model, **_fields_with_vocabulary(options, processor, loss)
        )
    return set_up_model(model, options, loss, adapted=adapted)


def set_up_model(
    model: PreTrainedModel, options: ModelOptions, loss: str = LOSSES[0], *, adapted: bool = False
) -> PreTrainedModel:
    """Set the image size and patch dropout, lock the image encoder, and add the logit bias that the loss needs."""
    for name, value in (("--image-size", options.image_size), ("--patch-dropout", options.patch_dropout)):
        if value is not None and not isinstance(model, BiomedCLIPModel):
            raise ValueError(f"{name} requires a BiomedCLIPModel, not a {type(model).__name__}. Omit it.")
    if options.image_size is not None:
        model.resize_images(options.image_size)
    if options.patch_dropout is not None:
        model.set_patch_dropout(options.patch_dropout)
    if options.lock_image_tower:
        lock_image_tower(model)
    if loss == "siglip" and find_logit_bias(model) is None:
        if adapted:
            raise ValueError(
                "--loss siglip: the checkpoint has no logit_bias, and an adapter cannot add one. Omit --loss siglip or "
                "--lora-rank."
            )
        _start_siglip(model)
    return model


def lock_image_tower(model: Any) -> None:
    """Freeze the image encoder as in LiT (arXiv 2111.07991), except for the projection, as in open_clip.

    The encoder runs in evaluation mode, without dropout.
    """
    model.vision_model.requires_grad_(False)
    model.vision_model.register_forward_pre_hook(_enter_locked_tower)
    model.vision_model.register_forward_hook(_leave_locked_tower, always_call=True)


def _enter_locked_tower(tower: Any, inputs: Any) -> None:
    # Trainer sets the whole model to training mode before each step. With gradient checkpointing, transformers makes
    # the patch embeddings require gradients, so the encoder would keep its activations.
    tower.eval()
    tower.grad_was_enabled = torch.is_grad_enabled()
    torch.set_grad_enabled(False)


def _leave_locked_tower(tower: Any, inputs: Any, outputs: Any) -> None:
    torch.set_grad_enabled(tower.grad_was_enabled)


def _start_siglip(model: PreTrainedModel) -> None:
    """Add a logit bias to a checkpoint without one, and reset its temperature to the initial value of SigLIP."""
    if not isinstance(model, BiomedCLIPModel):
        raise ValueError(
            f"--loss siglip requires a model with a logit_bias, which {type(model).__name__} does not support. Use "
            "--loss infonce, or start from a BiomedCLIPModel or a SiglipModel."
        )
    logger.warning(
        "The model has no logit_bias, which the SigLIP loss requires. It is set to %g, and logit_scale is reset to "
        "ln 10. With the old logit_scale, the negative pairs would dominate the loss.",
        SIGLIP_LOGIT_BIAS,
    )
    model.start_logit_bias(SIGLIP_LOGIT_BIAS, SIGLIP_LOGIT_SCALE)


def _fields_with_vocabulary(options: ModelOptions, processor: ProcessorMixin, loss: str) -> dict[str, Any]:
    """Return the fields of the configuration. A text encoder with random weights gets the size of the vocabulary."""
    config = configuration(options)
    fields = _config_fields(options, loss)
    if options.text_model:
        return fields
    text_fields = dict(fields.get("text_config") or {})
    if not options.tokenizer:
        text_fields.setdefault("vocab_size", len(processor.tokenizer))
    if _has_clip_text(fields):
        text_fields |= _special_tokens(options, processor)
    rows = text_fields.get("vocab_size", config.text_config.vocab_size)
    if len(processor.tokenizer) > rows:
        raise ValueError(
            f"The tokenizer has {len(processor.tokenizer):,} entries, but the model has {rows:,} token embeddings. "
            "Lower --vocabulary-size, or raise text_config.vocab_size in --model-config."
        )
    return {**fields, "text_config": text_fields}


def _has_clip_text(fields: Any) -> bool:
    """Return whether fields of BiomedCLIPConfig select CLIP's text encoder."""
    text_fields = fields.get("text_config") if isinstance(fields, Mapping) else None
    return isinstance(text_fields, Mapping) and text_fields.get("model_type") == CLIPTextConfig.model_type


def _special_tokens(options: ModelOptions, processor: ProcessorMixin) -> dict[str, int]:
    """Return the ids of the special tokens for the configuration of CLIP's text encoder."""
    tokenizer = processor.tokenizer
    end = tokenizer.eos_token_id
    # If the end has the id 2, transformers pools the token with the largest id.
    if end is None or end == 2 or tokenizer("a").input_ids[-1] != end:
        raise ValueError(
            f"--tokenizer {options.tokenizer}: CLIP's text encoder pools the end of the text. The tokenizer must "
            f"add an eos_token whose id is not 2 (eos_token_id={end}). Use a tokenizer such as that of "
            "openai/clip-vit-base-patch16."
        )
    ids = {"bos": tokenizer.bos_token_id, "eos": end, "pad": tokenizer.pad_token_id}
    return {f"{name}_token_id": number for name, number in ids.items() if number is not None}


def outline(
    options: ModelOptions, loss: str = LOSSES[0], *, adapted: bool = False
) -> tuple[PreTrainedModel, list[str]]:
    """Create the model that the options specify on the meta device, and list assumptions.

    Only configurations are downloaded.
    """
    notes: list[str] = []
    trust = options.trust_remote_code
    with torch.device("meta"):
        if options.model_name_or_path:
            config = _configuration_of(options.model_name_or_path, notes, trust_remote_code=trust)
            model = AutoModel.from_config(config, trust_remote_code=trust)
        else:
            fields = _config_fields(options, loss)
            configuration(options)
            if options.vision_model:
                start = _configuration_of(options.vision_model, notes, trust_remote_code=trust)
                fields["vision_config"] = vision_config_of(start)
                if epsilon := changed_epsilon(start):
                    notes.append(f"{options.vision_model}: {epsilon}")
            if options.text_model:
                start = _configuration_of(options.text_model, notes, trust_remote_code=trust)
                fields["text_config"] = text_config_of(start)
            elif not options.tokenizer:
                # Training will learn the vocabulary from the captions.
                learned = {"vocab_size": options.vocabulary_size}
                fields["text_config"] = learned | (fields.get("text_config") or {})
            model = BiomedCLIPModel(BiomedCLIPConfig(**fields))
        return set_up_model(model.train(), options, loss, adapted=adapted), notes


def _configuration_of(name: str, notes: list[str], *, trust_remote_code: bool) -> Any:
    """Return the configuration of a checkpoint. Known configurations are not downloaded."""
    if not Path(name).is_dir() and name in KNOWN:
        notes.append(f"{name}: known configuration. Training will need the weights, from the Hub or its cache.")
        return KNOWN[name]
    check_source(name, trust_remote_code=trust_remote_code)
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name}: the configuration could not be loaded ({str(error).splitlines()[0]}). A dry run needs it from a "
            f"folder or the Hub, except for {', '.join(KNOWN)}."
        ) from error


def configuration(options: ModelOptions) -> Any:
    """Return the configuration of the model, with published encoders in place of checkpoints."""
    return make_config("--model-config", BiomedCLIPConfig, _config_fields(options))


def read_fields(option: str, value: Any) -> dict[str, Any] | None:
    """Return the fields of a configuration from JSON (command line) or a mapping (recipe)."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{option} is not JSON: {error}") from error
    if value is not None and not isinstance(value, dict):
        raise ValueError(f'{option} must be a mapping of field names to values, such as {{"initializer_range": 0.02}}.')
    return value


def make_config(option: str, config_class: Any, fields: Mapping[str, Any]) -> Any:
    """Create a configuration from the fields of an option, and reject unknown ones, which transformers would accept."""
    parts = [(config_class, fields)]
    parts += [(part_class, fields.get(name) or {}) for name, part_class in config_class.sub_configs.items()]
    for part_class, part in parts:
        if part_class is BiomedCLIPTextConfig:
            part_class = text_config_class(part)
        if unknown := sorted(set(part) - set(part_class().to_dict())):
            raise ValueError(f"{option}: {part_class.__name__} has no field {', '.join(unknown)}.")
    try:
        return config_class(**fields)
    except StrictDataclassError as error:
        raise ValueError(f"{option}: {error}") from error


def _config_fields(options: ModelOptions, loss: str = LOSSES[0]) -> dict[str, Any]:
    start = {"logit_bias_init_value": SIGLIP_LOGIT_BIAS, "logit_scale_init_value": SIGLIP_LOGIT_SCALE}
    fields: dict[str, Any] = start if loss == "siglip" else {}
    fields |= options.model_config if isinstance(options.model_config, dict) else {}
    if options.image_size is not None and not options.vision_model:
        # Random position embeddings need no interpolation.
        fields["vision_config"] = {**(fields.get("vision_config") or {}), "image_size": options.image_size}
    return fields

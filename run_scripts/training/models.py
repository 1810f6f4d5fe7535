"""Which model is trained: options, the model they name, and its outline without weights."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
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
from biomedclip.modeling_biomedclip import changed_epsilon, text_config_of, vision_config_of
from biomedclip.source_checks import check_source

from ..cli.trust import trust_option
from .adapters import refuse_adapter
from .towers import lock_image_tower


logger = logging.getLogger(__name__)

# Checkpoints on the Hub that the recipes start from. Their shapes are known, so a dry run need not ask for them.
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
    """Which model is trained: a checkpoint's, or one whose towers come from checkpoints or are drawn afresh."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint to go on from: BiomedCLIP, CLIP or another dual encoder."}
    )
    vision_model: str | None = field(default=None, metadata={"help": "ViT checkpoint to start the image tower from."})
    text_model: str | None = field(default=None, metadata={"help": "BERT checkpoint to start the text tower from."})
    model_config: dict | str | None = field(
        default=None,
        metadata={
            "help": "Fields of BiomedCLIPConfig, as JSON, for towers with random weights (default: the published "
            "size). text_config.model_type=clip_text_model gives CLIP's text tower."
        },
    )
    image_size: int | None = field(
        default=None,
        metadata={"help": "Side of the images, in pixels. Positions of a checkpoint for another are interpolated."},
    )
    patch_dropout: float | None = field(
        default=None, metadata={"help": "Share of each image's patches that training leaves out, at random."}
    )
    lock_image_tower: bool = field(
        default=False, metadata={"help": "Train all but the image tower, whose projection is trained (LiT)."}
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "Tokenizer to use. The checkpoint's, or one trained on the training captions."}
    )
    vocabulary_size: int = field(
        default=30522, metadata={"help": "Entries at most of a vocabulary trained on the captions."}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens a caption is cut at. The tokenizer's limit if left out."}
    )
    trust_remote_code: bool = trust_option()

    def __post_init__(self):
        self.model_config = read_fields("--model-config", self.model_config)
        towers = {"vision_model": self.vision_model, "text_model": self.text_model}
        if self.model_name_or_path and (any(towers.values()) or self.model_config is not None):
            raise ValueError(
                "Choose one of --model-name-or-path, and towers by --vision-model, --text-model, --model-config."
            )
        if self.model_name_or_path and self.tokenizer:
            raise ValueError("--model-name-or-path brings its own tokenizer; leave --tokenizer out.")
        source = self.model_name_or_path or self.tokenizer or self.text_model
        if source and self.vocabulary_size != ModelOptions.vocabulary_size:
            raise ValueError(f"--vocabulary-size has no effect: {source} brings its vocabulary. Leave it out.")
        for name, least in (("image_size", 1), ("vocabulary_size", 1), ("max_length", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name.replace('_', '-')} must be {least} or more, not {value}.")
        if self.patch_dropout is not None and not 0 <= self.patch_dropout < 1:
            raise ValueError(f"--patch-dropout must be at least 0 and less than 1, not {self.patch_dropout}.")
        for option, section in (("vision_model", "vision_config"), ("text_model", "text_config")):
            if towers[option] and isinstance(self.model_config, dict) and self.model_config.get(section):
                raise ValueError(
                    f"--{option.replace('_', '-')} brings its own configuration; take {section} out of --model-config."
                )
        if _has_clip_text(self.model_config) and not self.tokenizer:
            raise ValueError(
                "text_config.model_type=clip_text_model needs --tokenizer: CLIP's text tower pools the end of the "
                "text, which a vocabulary that is learned from the captions does not mark."
            )
        if self.lock_image_tower and self.patch_dropout:
            raise ValueError("--patch-dropout has no effect on a tower that is locked; leave one of the two out.")
        if self.lock_image_tower and not (self.model_name_or_path or self.vision_model):
            raise ValueError(
                "--lock-image-tower would keep random weights: start from --vision-model or --model-name-or-path."
            )


def load_model(
    options: ModelOptions, processor: ProcessorMixin, loss: str = LOSSES[0], *, adapted: bool = False
) -> PreTrainedModel:
    """The model that the options name: from checkpoints, and with random weights where they name none.

    Args:
        options: Which model.
        processor: Its processor.
        loss: Which loss it is for: SigLIP's needs a bias.
        adapted: Only an adapter will be trained, and saved without the model.

    Raises:
        ValueError: The model cannot be what the options and the loss ask for.
    """
    trust = options.trust_remote_code
    for name in filter(None, (options.model_name_or_path, options.vision_model, options.text_model)):
        check_source(name, trust_remote_code=trust)
    if options.model_name_or_path:
        model = AutoModel.from_pretrained(options.model_name_or_path, dtype=torch.float32, trust_remote_code=trust)
        refuse_adapter(model)
    else:
        model = BiomedCLIPModel.from_vision_text_pretrained(
            options.vision_model, options.text_model, **_fields_with_vocabulary(options, processor, loss)
        )
    return set_up_model(model, options, loss, adapted=adapted)


def set_up_model(
    model: PreTrainedModel, options: ModelOptions, loss: str = LOSSES[0], *, adapted: bool = False
) -> PreTrainedModel:
    """Gives a model the size of images, the patch dropout, the locked tower and the bias that options and loss ask for.

    Raises:
        ValueError: The model has no such thing.
    """
    for option, value in (("--image-size", options.image_size), ("--patch-dropout", options.patch_dropout)):
        if value is not None and not isinstance(model, BiomedCLIPModel):
            raise ValueError(f"{option} is for a BiomedCLIPModel, not for a {type(model).__name__}. Leave it out.")
    if options.image_size is not None:
        model.resize_images(options.image_size)
    if options.patch_dropout is not None:
        model.set_patch_dropout(options.patch_dropout)
    if options.lock_image_tower:
        lock_image_tower(model)
    if loss == "siglip" and find_logit_bias(model) is None:
        if adapted:
            raise ValueError(
                "--loss siglip: the checkpoint has no logit_bias, and an adapter, which is saved without its base, "
                "cannot bring one. Leave one of --loss siglip and --lora-rank out."
            )
        _start_siglip(model)
    return model


def _start_siglip(model: PreTrainedModel) -> None:
    """Gives a checkpoint the bias that it lacks, with the temperature that SigLIP starts from in place of its own."""
    if not isinstance(model, BiomedCLIPModel):
        raise ValueError(
            f"--loss siglip needs a model with a logit_bias, for which {type(model).__name__} has no place. Take "
            "infonce, or start from a BiomedCLIPModel or a SiglipModel."
        )
    logger.warning(
        "The model has no logit_bias, which SigLIP's loss needs: it gets one of %g, and its temperature starts afresh "
        "with it, at a logit_scale of ln 10. With the old temperature the wrong pairs would outweigh the right ones.",
        SIGLIP_LOGIT_BIAS,
    )
    model.start_logit_bias(SIGLIP_LOGIT_BIAS, SIGLIP_LOGIT_SCALE)


def _fields_with_vocabulary(options: ModelOptions, processor: ProcessorMixin, loss: str) -> dict[str, Any]:
    """Fields of the configuration; a text tower that is drawn afresh has as many words as the vocabulary."""
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
            f"The tokenizer has {len(processor.tokenizer):,} entries, more than the {rows:,} "
            "rows of the model's table. Lower --vocabulary-size, or raise text_config.vocab_size in --model-config."
        )
    return {**fields, "text_config": text_fields}


def _has_clip_text(fields: Any) -> bool:
    """Whether fields of BiomedCLIPConfig ask for CLIP's text tower."""
    text_fields = fields.get("text_config") if isinstance(fields, Mapping) else None
    return isinstance(text_fields, Mapping) and text_fields.get("model_type") == CLIPTextConfig.model_type


def _special_tokens(options: ModelOptions, processor: ProcessorMixin) -> dict[str, int]:
    """Ids of the special tokens that CLIP's text tower knows.

    Raises:
        ValueError: If the tokenizer does not mark the end of a text.
    """
    tokenizer = processor.tokenizer
    end = tokenizer.eos_token_id
    # transformers pools the largest id of a text if the end has the id 2.
    if end is None or end == 2 or tokenizer("a").input_ids[-1] != end:
        raise ValueError(
            f"--tokenizer {options.tokenizer}: CLIP's text tower pools the end of the text, so texts must end with an "
            f"eos_token, and its id must not be 2 (eos_token_id={end}). Use a tokenizer such as that of "
            "openai/clip-vit-base-patch16."
        )
    ids = {"bos": tokenizer.bos_token_id, "eos": end, "pad": tokenizer.pad_token_id}
    return {f"{name}_token_id": number for name, number in ids.items() if number is not None}


def outline(
    options: ModelOptions, loss: str = LOSSES[0], *, adapted: bool = False
) -> tuple[PreTrainedModel, list[str]]:
    """The model that the options name without its weights, for which nothing is downloaded but a configuration.

    Args:
        options: Which model.
        loss: Which loss it is for.
        adapted: Only an adapter will be trained.

    Returns:
        The model on the meta device, and notes on what was not looked at.

    Raises:
        ValueError: A checkpoint whose configuration cannot be had, or a model that cannot be what is asked for.
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
                # The vocabulary is learned from the captions in training.
                learned = {"vocab_size": options.vocabulary_size}
                fields["text_config"] = learned | (fields.get("text_config") or {})
            model = BiomedCLIPModel(BiomedCLIPConfig(**fields))
        return set_up_model(model.train(), options, loss, adapted=adapted), notes


def _configuration_of(name: str, notes: list[str], *, trust_remote_code: bool) -> Any:
    """The configuration of a checkpoint: its own, or that of a known one."""
    if not Path(name).is_dir() and name in KNOWN:
        notes.append(f"{name}: its known shape; training will need its weights, from the Hub or its cache.")
        return KNOWN[name]
    check_source(name, trust_remote_code=trust_remote_code)
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name}: its configuration could not be had ({str(error).splitlines()[0]}). A dry run needs it, from a "
            f"folder or the Hub; without either it knows {', '.join(KNOWN)}."
        ) from error


def configuration(options: ModelOptions) -> Any:
    """The configuration that the options spell out, with the published tower where a checkpoint will stand."""
    return make_config("--model-config", BiomedCLIPConfig, _config_fields(options))


def read_fields(option: str, value: Any) -> dict[str, Any] | None:
    """Fields of a configuration: JSON off the command line, or a mapping out of a recipe; none where none are given.

    Raises:
        ValueError: Anything else.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{option} is not JSON: {error}") from error
    if value is not None and not isinstance(value, dict):
        raise ValueError(f'{option} must hold fields by name, such as {{"initializer_range": 0.02}}.')
    return value


def make_config(option: str, config_class: Any, fields: Mapping[str, Any]) -> Any:
    """The configuration that an option spells out.

    Args:
        option: For errors.
        config_class: Its class.
        fields: Its fields, of which those of `sub_configs` are mappings.

    Raises:
        ValueError: A field that there is not (transformers takes any without a word), or fields that do not fit.
    """
    parts = [(config_class, fields)]
    parts += [(part_class, fields.get(name) or {}) for name, part_class in config_class.sub_configs.items()]
    for part_class, part in parts:
        if part_class is BiomedCLIPTextConfig:
            part_class = text_config_class(part)
        if unknown := sorted(set(part) - set(part_class().to_dict())):
            raise ValueError(f"{option}: {', '.join(unknown)}: not a field of {part_class.__name__}.")
    try:
        return config_class(**fields)
    except StrictDataclassError as error:
        raise ValueError(f"{option}: {error}") from error


def _config_fields(options: ModelOptions, loss: str = LOSSES[0]) -> dict[str, Any]:
    start = {"logit_bias_init_value": SIGLIP_LOGIT_BIAS, "logit_scale_init_value": SIGLIP_LOGIT_SCALE}
    fields: dict[str, Any] = start if loss == "siglip" else {}
    fields |= options.model_config if isinstance(options.model_config, dict) else {}
    if options.image_size is not None and not options.vision_model:
        # Positions that are drawn at random need no interpolation.
        fields["vision_config"] = {**(fields.get("vision_config") or {}), "image_size": options.image_size}
    return fields

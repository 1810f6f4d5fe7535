"""A dual encoder with a few-shot head, as one classifier. Only the head is saved.

The folder of a head states the dual encoder and the fingerprint of its weights. Other weights are refused, because the
head would silently be wrong for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from transformers import AutoModel, PreTrainedModel
from transformers.utils import ModelOutput, cached_file

from .configuration_few_shot import FewShotConfig
from .few_shot_head import FewShotHead
from .source_checks import FEW_SHOT, check_source, find_file, read_json
from .weights_fingerprint import weights_fingerprint


WEIGHTS = "model.safetensors"
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


@dataclass
class FewShotOutput(ModelOutput):
    """Output of [`FewShotForImageClassification`].

    Args:
        logits (`torch.Tensor` of shape `(images, classes)`): Logits of the classes.
        logits_per_image (`torch.Tensor` of shape `(images, texts)`): Logits of the classes that the texts name, or all
            logits without texts.
        image_embeds (`torch.Tensor` of shape `(images, dimension)`): Normalized image embeddings.
    """

    logits: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None


class FewShotForImageClassification(PreTrainedModel):
    """A few-shot head on a dual encoder.

    `biomedclip train --task few-shot-head` writes such heads. They load with `AutoModelForZeroShotImageClassification`
    and `AutoModelForImageClassification`.

    Args:
        config: Configuration of the head.
        base: The dual encoder, with `get_image_features`.
        head: The head.

    Example:
    ```python
    >>> from biomedclip import read_image
    >>> from transformers import AutoModelForZeroShotImageClassification, AutoProcessor

    >>> model = AutoModelForZeroShotImageClassification.from_pretrained("head")
    >>> processor = AutoProcessor.from_pretrained("head")
    >>> model(**processor(images=read_image("scan.png"), return_tensors="pt")).logits.softmax(dim=-1)
    ```
    """

    config: FewShotConfig
    config_class = FewShotConfig
    base_model_prefix = "base"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")

    def __init__(self, config: FewShotConfig, base: PreTrainedModel, head: FewShotHead):
        super().__init__(config)
        self.head = head
        self.post_init()
        self.base = base  # after `post_init`, which would initialize its weights

    @torch.no_grad()
    def _init_weights(self, module: torch.nn.Module) -> None:
        """Do nothing: the head has no random weights."""

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: Any, *args: Any, config: Any = None, **kwargs: Any
    ) -> "FewShotForImageClassification":
        """Load a head and the dual encoder that its configuration states.

        Args:
            pretrained_model_name_or_path: Folder or Hub id of the head.
            args: Not used.
            config: Configuration of the head (default: that of the folder).
            kwargs: Options of transformers. `dtype` is that of the dual encoder and the head, and
                `base_model_name_or_path` is the place of the dual encoder if it was moved.

        Raises:
            OSError: If a file of the head or the dual encoder is missing.
            ValueError: If the dual encoder has other weights, or if a file is damaged.
        """
        name = str(pretrained_model_name_or_path)
        check_source(name, trust_remote_code=False)
        hub = {option: kwargs[option] for option in _HUB_OPTIONS if kwargs.get(option) is not None}
        config = FewShotConfig.from_pretrained(name, trust_remote_code=False, **hub) if config is None else config
        place = kwargs.pop("base_model_name_or_path", None) or config.base_model_name_or_path
        base = _load_base(place, name)
        found = weights_fingerprint(base)
        if found != config.base_weights:
            raise ValueError(
                f"{name} was fitted on a model with the weights {config.base_weights} "
                f"({config.base_model_name_or_path}), but {place} has the weights {found}. Fit a new head with "
                "biomedclip train --task few-shot-head, or pass the original model as base_model_name_or_path."
            )
        head = _load_head(name, config, hub)
        model = cls(config, base, head).eval()
        dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
        if dtype in (None, "auto"):
            return model
        return model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Save the head and its configuration, without the dual encoder. Save the processor into the same folder."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.architectures = [type(self).__name__]
        self.config.save_pretrained(folder)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.head.named_buffers()}
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})

    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> FewShotOutput:
        """Classify images.

        Args:
            pixel_values (`torch.Tensor` of shape `(images, 3, height, width)`): Normalized pixels.
            input_ids (`torch.Tensor` of shape `(texts, sequence_length)`, *optional*): Texts that name classes of the
                head, such as the candidate labels of a pipeline. The head does not read other words of them.
            attention_mask (`torch.Tensor`, *optional*): Not used.
            kwargs: Not used. transformers' pipelines pass further inputs.

        Raises:
            ValueError: If a text names none or several of the classes.
        """
        features = self.base.get_image_features(pixel_values=pixel_values).pooler_output
        embeds = normalize(features.float(), dim=-1)
        logits = self.head(embeds.to(self._dtype_of_head))
        columns = list(range(logits.shape[1])) if input_ids is None else self.classes_of(input_ids.tolist())
        return FewShotOutput(logits=logits, logits_per_image=logits[:, columns], image_embeds=embeds)

    @property
    def _dtype_of_head(self) -> torch.dtype:
        return next(tensor.dtype for tensor in self.head.buffers() if tensor.is_floating_point())

    def classes_of(self, token_ids: Sequence[Sequence[int]]) -> list[int]:
        """Return the index of the class that each text names: the one with the longest name in the text."""
        found: list[int] = []
        for text in token_ids:
            lengths: dict[int, int] = {}
            for number, names in enumerate(self.config.class_token_ids):
                lengths[number] = max((len(name) for name in names if _contains(text, name)), default=0)
            longest = max(lengths.values(), default=0)
            named = [number for number, length in lengths.items() if length == longest > 0]
            if len(named) != 1:
                what = "names none" if not named else "names several"
                classes = ", ".join(map(str, self.config.id2label.values()))
                raise ValueError(f"Text {len(found) + 1} {what} of the classes of this few-shot head: {classes}.")
            found += named
        return found


def _contains(text: Sequence[int], name: Sequence[int]) -> bool:
    """Return whether the token ids of a name are consecutive token ids of a text."""
    places = range(len(text) - len(name) + 1)
    return len(name) > 0 and any(list(text[place : place + len(name)]) == list(name) for place in places)


def _load_base(place: Any, head: str) -> PreTrainedModel:
    if not isinstance(place, str | Path) or not str(place).strip():
        raise ValueError(f"{head}: base_model_name_or_path is {place!r}. It must be the dual encoder of the head.")
    place = str(place)
    check_source(place, trust_remote_code=False)  # `from_pretrained` may have checked another revision or folder
    file = find_file(place, "config.json")
    content = None if file is None else read_json(file)
    if isinstance(content, dict) and content.get("model_type") == FEW_SHOT:
        raise ValueError(f"{head}: the dual encoder {place} is itself a few-shot head. Pass the model of that head.")
    remedy = f"If it was moved, correct base_model_name_or_path in {head}/config.json, or pass it to from_pretrained."
    if not Path(place).is_dir() and (Path(place).is_absolute() or place.count("/") != 1):
        raise FileNotFoundError(f"{head}: the folder {place} of its dual encoder does not exist. {remedy}")
    try:
        model = AutoModel.from_pretrained(place, dtype=torch.float32, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        kind = FileNotFoundError if isinstance(error, OSError) else ValueError
        raise kind(f"{head}: the dual encoder {place} cannot be loaded ({reason}). {remedy}") from error
    if not hasattr(model, "get_image_features"):
        raise ValueError(f"{head}: the model {place} is a {type(model).__name__}, not a dual encoder.")
    return model.eval()


def _load_head(name: str, config: FewShotConfig, hub: dict[str, Any]) -> FewShotHead:
    file = cached_file(name, WEIGHTS, **hub)
    try:
        head = FewShotHead(config.method, load_file(str(file)), config.head_settings or {})
    except (SafetensorError, ValueError, TypeError, OSError) as error:
        raise ValueError(f"{file}: damaged, or not a few-shot head of its config.json ({error}).") from error
    if head.num_classes != config.num_labels:
        raise ValueError(
            f"{file}: the head has {head.num_classes} classes, but config.json has {config.num_labels} labels."
        )
    return head

"""Configuration of a few-shot head."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class FewShotConfig(PreTrainedConfig):
    r"""Configuration of [`FewShotForImageClassification`]. `id2label` contains the classes.

    Args:
        method (`str`, defaults to `"zero-shot"`): Method of the head, see [`FewShotHead`].
        head_settings (`dict`): Numbers of the head, such as the alpha and beta of Tip-Adapter.
        base_model_name_or_path (`str`): Folder or Hub id of the dual encoder that the head was fitted on.
        base_weights (`str`): Fingerprint of the weights of the dual encoder in float32.
        class_names (`list[str]`): Name of each class in prompts.
        templates (`list[str]`): Prompt templates of the classes.
        class_token_ids (`list[list[list[int]]]`): Token ids of the label and of the name of each class.
        training (`dict`): The images that the head was fitted on, and the settings that were chosen.
    """

    model_type = "biomedclip_few_shot"

    method: str = "zero-shot"
    head_settings: dict[str, Any] | None = None
    base_model_name_or_path: str = ""
    base_weights: str = ""
    class_names: list[str] | tuple[str, ...] = ()
    templates: list[str] | tuple[str, ...] = ()
    class_token_ids: list[Any] | tuple[Any, ...] = ()
    training: dict[str, Any] | None = None

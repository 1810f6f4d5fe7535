"""Configuration of BiomedCLIP: a ViT image tower and a BERT or CLIP text tower, projected into a shared space.

The defaults describe the published model, `microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224`.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import CLIPTextConfig, PreTrainedConfig
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME


def _check_heads(config: PreTrainedConfig) -> None:
    if config.hidden_size % config.num_attention_heads != 0:
        raise ValueError(
            f"hidden_size ({config.hidden_size}) of {type(config).__name__} must be a multiple of "
            f"num_attention_heads ({config.num_attention_heads})."
        )


class BiomedCLIPBaseConfig(PreTrainedConfig):
    """Base class that saves the model class for each Auto class, so that the saved code can be loaded."""

    _auto_class = "AutoConfig"
    _model_of_auto_class: ClassVar[dict[str, str]] = {}

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save `config.json` with an `auto_map` for all Auto classes, not only for the one of the saved model."""
        # A configuration that was loaded from the Hub still refers to the code in that repository.
        self.auto_map = {
            auto_class: f"modeling_biomedclip.{model}" for auto_class, model in self._model_of_auto_class.items()
        }
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


@strict
class BiomedCLIPTextConfig(BiomedCLIPBaseConfig):
    r"""Configuration of the text tower: BERT base with the vocabulary of PubMedBERT.

    Args:
        vocab_size (`int`, defaults to 30522): Number of word embeddings. PubMedBERT has 28,895 words.
        hidden_size (`int`, defaults to 768): Width of the tower.
        intermediate_size (`int`, defaults to 3072): Width of the feed-forward layers.
        projection_dim (`int`, defaults to 512): Dimension of the shared embedding space.
        num_hidden_layers (`int`, defaults to 12): Number of post-LayerNorm blocks.
        num_attention_heads (`int`, defaults to 12): Number of attention heads per block.
        max_position_embeddings (`int`, defaults to 512): Number of positions. BiomedCLIP was trained with the first
            256.
        type_vocab_size (`int`, defaults to 2): Number of token types.
        hidden_act (`str`, defaults to `"gelu"`): Activation of the feed-forward layers and of the projection.
        hidden_dropout (`float`, defaults to 0.1): Dropout after embeddings, attention and feed-forward layers.
        attention_dropout (`float`, defaults to 0.1): Dropout of attention probabilities.
        layer_norm_eps (`float`, defaults to 1e-12): Epsilon of every LayerNorm.
        initializer_range (`float`, defaults to 0.02): Standard deviation for the initialization of linear layers and
            embeddings. The projection uses the default of PyTorch, as in open_clip.
        pad_token_id (`int`, defaults to 0): Id of `[PAD]`. These tokens are masked if no attention mask is passed.

    Example:
    ```python
    >>> from biomedclip import BiomedCLIPTextConfig, BiomedCLIPTextModel

    >>> model = BiomedCLIPTextModel(BiomedCLIPTextConfig(num_hidden_layers=2))
    ```
    """

    model_type = "biomedclip_text_model"
    _model_of_auto_class = {"AutoModel": "BiomedCLIPTextModel"}
    base_config_key = "text_config"

    vocab_size: int = 30522
    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    hidden_dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int | None = 0

    def __post_init__(self, **kwargs):
        if kwargs.get("model_type", self.model_type) != self.model_type:
            raise ValueError(
                f"`model_type` is {kwargs['model_type']!r}, but this configuration needs {self.model_type!r}. Load the "
                "whole model with `BiomedCLIPModel`."
            )
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Raise `ValueError` if `hidden_size` is not a multiple of `num_attention_heads`."""
        _check_heads(self)


@strict
class BiomedCLIPVisionConfig(BiomedCLIPBaseConfig):
    r"""Configuration of the image tower, `vit_base_patch16_224` of timm by default.

    Args:
        hidden_size (`int`, defaults to 768): Width of the tower.
        intermediate_size (`int`, defaults to 3072): Width of the feed-forward layers.
        projection_dim (`int`, defaults to 512): Dimension of the shared embedding space.
        num_hidden_layers (`int`, defaults to 12): Number of pre-LayerNorm blocks.
        num_attention_heads (`int`, defaults to 12): Number of attention heads per block.
        num_channels (`int`, defaults to 3): Number of channels of the images.
        image_size (`int`, defaults to 224): Side of the square images in pixels.
        patch_size (`int`, defaults to 16): Side of a patch in pixels.
        hidden_act (`str`, defaults to `"gelu"`): Activation of the feed-forward layers.
        hidden_dropout (`float`, defaults to 0.0): Dropout after embeddings, attention and feed-forward layers.
        attention_dropout (`float`, defaults to 0.0): Dropout of attention probabilities.
        layer_norm_eps (`float`, defaults to 1e-6): Epsilon of every LayerNorm, as in timm. With 1e-12, the default of
            transformers' ViT, the embeddings differ.
        patch_dropout (`float`, defaults to 0.0): Fraction of the patches of each image that are randomly dropped during
            training (FLIP, arXiv 2212.00794).
        initializer_range (`float`, defaults to 0.02): Standard deviation for the initialization of linear layers and
            positions. Patch embedding and projection use the default of PyTorch, as in timm and open_clip.

    Example:
    ```python
    >>> from biomedclip import BiomedCLIPVisionConfig, BiomedCLIPVisionModel

    >>> model = BiomedCLIPVisionModel(BiomedCLIPVisionConfig(num_hidden_layers=2))
    ```
    """

    model_type = "biomedclip_vision_model"
    _model_of_auto_class = {"AutoModel": "BiomedCLIPVisionModel"}
    base_config_key = "vision_config"

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 16
    hidden_act: str = "gelu"
    hidden_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    layer_norm_eps: float = 1e-6
    patch_dropout: float | int = 0.0
    initializer_range: float = 0.02

    def validate_architecture(self) -> None:
        """Raise `ValueError` if sizes are not divisible, or if `patch_dropout` is not in [0, 1)."""
        _check_heads(self)
        if not 0 <= self.patch_dropout < 1:
            raise ValueError(f"patch_dropout must be at least 0 and less than 1, not {self.patch_dropout}.")
        if self.image_size % self.patch_size != 0:
            raise ValueError(
                f"image_size ({self.image_size}) must be a multiple of patch_size ({self.patch_size}), "
                "otherwise pixels at the right and lower edge are ignored."
            )


@strict
class BiomedCLIPCoAttentionConfig(PreTrainedConfig):
    r"""Configuration of the co-attention head that answers questions (METER, arXiv 2111.02387, as used in BiomedCLIP).

    Args:
        hidden_size (`int`, defaults to 768): Width of the head. The tokens of both towers are projected to it.
        intermediate_size (`int`, defaults to 3072): Width of the feed-forward layers.
        num_hidden_layers (`int`, defaults to 6): Number of blocks per modality.
        num_attention_heads (`int`, defaults to 12): Number of attention heads per block.
        hidden_act (`str`, defaults to `"gelu"`): Activation of the feed-forward layers.
        hidden_dropout (`float`, defaults to 0.1): Dropout after attention and feed-forward layers.
        attention_dropout (`float`, defaults to 0.1): Dropout of attention probabilities.
        layer_norm_eps (`float`, defaults to 1e-12): Epsilon of every LayerNorm.
        initializer_range (`float`, defaults to 0.02): Standard deviation for the initialization of weights.
    """

    model_type = "biomedclip_co_attention"
    base_config_key = "co_attention_config"

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    hidden_act: str = "gelu"
    hidden_dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02

    def validate_architecture(self) -> None:
        """Raise `ValueError` if `hidden_size` is not a multiple of `num_attention_heads`."""
        _check_heads(self)


def text_config_class(fields: Mapping[str, Any]) -> type[BiomedCLIPTextConfig] | type[CLIPTextConfig]:
    """Return the configuration class of a text tower for the `model_type` in its fields. The default is BERT."""
    classes = {config_class.model_type: config_class for config_class in (BiomedCLIPTextConfig, CLIPTextConfig)}
    wanted = fields.get("model_type", BiomedCLIPTextConfig.model_type)
    if wanted not in classes:
        raise ValueError(f"`text_config.model_type` is {wanted!r}. Use one of: {', '.join(classes)}.")
    return classes[wanted]


@strict
class BiomedCLIPConfig(BiomedCLIPBaseConfig):
    r"""Configuration of the whole model.

    Args:
        text_config (`dict`, [`BiomedCLIPTextConfig`] or `CLIPTextConfig`, *optional*): The text tower. In a `dict`,
            `model_type="clip_text_model"` selects CLIP's text tower, a GPT-2 with a causal mask.
        vision_config (`dict` or [`BiomedCLIPVisionConfig`], *optional*): The image tower.
        co_attention_config (`dict` or [`BiomedCLIPCoAttentionConfig`], *optional*): The head of
            [`BiomedCLIPForVisualQuestionAnswering`].
        projection_dim (`int`, defaults to 512): Dimension of the shared embedding space. Both towers use this
            value.
        logit_scale_init_value (`float`, defaults to ln(1 / 0.07)): Initial log of the inverse temperature. SigLIP
            uses ln 10.
        logit_bias_init_value (`float`, *optional*): Initial value of a bias that is added to each logit. The SigLIP
            loss requires it and usually starts at -10. By default, the model has no such parameter.
        initializer_range (`float`, defaults to 0.02): Standard deviation for the initialization of a classifier.

    Example:
    ```python
    >>> from biomedclip import BiomedCLIPConfig, BiomedCLIPModel

    >>> config = BiomedCLIPConfig(text_config={"num_hidden_layers": 2}, vision_config={"num_hidden_layers": 2})
    >>> model = BiomedCLIPModel(config)
    ```
    """

    model_type = "biomedclip"
    _model_of_auto_class = {
        "AutoModel": "BiomedCLIPModel",
        "AutoModelForZeroShotImageClassification": "BiomedCLIPModel",
        "AutoModelForImageClassification": "BiomedCLIPForImageClassification",
        "AutoModelForVisualQuestionAnswering": "BiomedCLIPForVisualQuestionAnswering",
    }
    sub_configs = {
        "text_config": BiomedCLIPTextConfig,
        "vision_config": BiomedCLIPVisionConfig,
        "co_attention_config": BiomedCLIPCoAttentionConfig,
    }

    text_config: dict | BiomedCLIPTextConfig | CLIPTextConfig | None = None
    vision_config: dict | BiomedCLIPVisionConfig | None = None
    co_attention_config: dict | BiomedCLIPCoAttentionConfig | None = None
    projection_dim: int = 512
    logit_scale_init_value: float | int = math.log(1 / 0.07)
    logit_bias_init_value: float | int | None = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        for name, config_class in self.sub_configs.items():
            sub_config = getattr(self, name)
            if sub_config is None:
                sub_config = config_class()
            elif isinstance(sub_config, dict):
                if name == "text_config":
                    config_class = text_config_class(sub_config)
                sub_config = config_class(**sub_config)
            setattr(self, name, sub_config)
        if not __name__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME):
            # The installed package has registered its own pipeline.
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "projection_dim" or name in self.sub_configs:
            # Both towers store the value, so that a tower that is saved alone keeps its projection size.
            for sub_config in map(self.__dict__.get, self.sub_configs):
                if hasattr(sub_config, "projection_dim"):
                    sub_config.projection_dim = self.projection_dim

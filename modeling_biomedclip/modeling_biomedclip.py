"""BiomedCLIP in PyTorch: a ViT image tower and a BERT or CLIP text tower, projected into a shared space.

Both towers use the same attention and feed-forward modules under the same names, so one list of LoRA targets fits both.
They differ in the position of LayerNorm: before each sub-layer of an image block (ViT), after each sub-layer of a text
block (BERT).
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import (
    CLIPMLP,
    CLIPOutput,
    CLIPTextModelOutput,
    CLIPVisionModelOutput,
    eager_attention_forward,
)
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, torch_int
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_biomedclip import (
    BiomedCLIPCoAttentionConfig,
    BiomedCLIPConfig,
    BiomedCLIPTextConfig,
    BiomedCLIPVisionConfig,
)
from .packed_attention_biomedclip import BOUNDARIES, check_packed, packed_attention


# What sentence-transformers reads: the methods that embed texts and images, and L2 normalization after them. The
# folder of `Normalize` never exists. It has no settings, and a repository cannot contain an empty folder.
SENTENCE_TRANSFORMERS_FILES: dict[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"},
    ],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {
            "text": {"method": "get_text_features", "method_output_name": "pooler_output"},
            "image": {"method": "get_image_features", "method_output_name": "pooler_output"},
        },
        "module_output_name": "sentence_embedding",
    },
    "config_sentence_transformers.json": {
        "model_type": "SentenceTransformer",
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    },
}


@dataclass
class BiomedCLIPVisualQuestionAnsweringOutput(ModelOutput):
    """Output of [`BiomedCLIPForVisualQuestionAnswering`].

    Args:
        loss (`torch.Tensor` of shape `()`, *optional*): Binary cross-entropy, summed over answers, with `labels`.
        logits (`torch.Tensor` of shape `(batch_size, num_labels)`): Logit of each answer. The sigmoid is the score.
        text_model_output (`BaseModelOutputWithPooling`): Output of the text tower.
        vision_model_output (`BaseModelOutputWithPooling`): Output of the image tower.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class BiomedCLIPAttention(GradientCheckpointingLayer):
    """Multi-head attention without a causal mask: self-attention, or cross-attention to `key_value_states`.

    `pre_norm` is applied to the hidden states first.
    """

    def __init__(self, config: BiomedCLIPTextConfig | BiomedCLIPVisionConfig | BiomedCLIPCoAttentionConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = False

        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        key_value_states: torch.Tensor | None = None,
        pre_norm: Callable[[torch.Tensor], torch.Tensor] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if pre_norm is not None:
            hidden_states = pre_norm(hidden_states)
        if key_value_states is None:
            key_value_states = hidden_states
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        key_value_shape = (*key_value_states.shape[:-1], -1, self.head_dim)

        # (batch, sequence, hidden) -> (batch, heads, sequence, head_dim)
        query = self.q_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        key = self.k_proj(key_value_states).view(key_value_shape).transpose(1, 2)
        value = self.v_proj(key_value_states).view(key_value_shape).transpose(1, 2)

        if self.trains_slowly(query, attention_mask):
            with torch.autocast("cpu", enabled=False):
                states = (query.float(), key.float(), value.float())
                attention_output, attention_weights = self.attend(*states, attention_mask, **kwargs)
            attention_output = attention_output.to(query.dtype)
        else:
            attention_output, attention_weights = self.attend(query, key, value, attention_mask, **kwargs)
        attention_output = attention_output.reshape(*input_shape, -1).contiguous()
        return self.out_proj(attention_output), attention_weights

    def trains_slowly(self, query: torch.Tensor, attention_mask: torch.Tensor | None) -> bool:
        """Return whether to compute attention in float32 instead of bfloat16.

        On a CPU, the backward pass of torch's attention takes several times as long in bfloat16.
        """
        if not self.training or query.device.type != "cpu" or query.dtype != torch.bfloat16:
            return False
        # Other masks have the type of the query.
        any_type = attention_mask is None or attention_mask.dtype == torch.bool
        return self.config._attn_implementation == "sdpa" and any_type

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the attention function of the configuration. In a packed batch, each text attends to itself."""
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        options = {"scaling": self.scaling, "dropout": self.attention_dropout if self.training else 0.0, **kwargs}
        if kwargs.get("cu_seq_lens_q") is None:
            return attention_interface(self, query, key, value, attention_mask, **options)
        return packed_attention(self, query, key, value, attention_interface, **options)


class BiomedCLIPMLP(GradientCheckpointingLayer, CLIPMLP):
    """Feed-forward module. `pre_norm` is applied to the hidden states first."""

    def forward(
        self, hidden_states: torch.Tensor, pre_norm: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> torch.Tensor:
        return super().forward(hidden_states if pre_norm is None else pre_norm(hidden_states))


class BiomedCLIPEncoderLayer(nn.Module):
    """Modules of a transformer block. The subclasses differ in the position of LayerNorm.

    Gradient checkpointing keeps the inputs of attention and MLP. The output projection of attention and the second
    layer of the MLP, 5 of the 12 matrix products of a block, are not recomputed.
    """

    def __init__(self, config: BiomedCLIPTextConfig | BiomedCLIPVisionConfig):
        super().__init__()
        self.self_attn = BiomedCLIPAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = BiomedCLIPMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)


class BiomedCLIPVisionLayer(BiomedCLIPEncoderLayer):
    """Pre-LayerNorm block of ViT."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        # Bound methods, because accelerate would move a module passed as an argument to the device of the callee.
        attention_output, _ = self.self_attn(hidden_states, pre_norm=self.layer_norm1.__call__, **kwargs)
        hidden_states = hidden_states + self.dropout(attention_output)
        mlp_output = self.mlp(hidden_states, pre_norm=self.layer_norm2.__call__)
        return hidden_states + self.dropout(mlp_output)


class BiomedCLIPTextLayer(BiomedCLIPEncoderLayer):
    """Post-LayerNorm block of BERT."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        attention_output, _ = self.self_attn(hidden_states, attention_mask, **kwargs)
        hidden_states = self.layer_norm1(self.dropout(attention_output) + hidden_states)
        mlp_output = self.mlp(hidden_states)
        return self.layer_norm2(self.dropout(mlp_output) + hidden_states)


class BiomedCLIPPatchDropout(nn.Module):
    """Drop a random fraction of the patches of each image during training. The class token is always kept.

    As in timm and open_clip, each patch is assigned a normally distributed random number. The patches with the smallest
    numbers are kept in that order. The order does not affect attention, because positions have already been added.
    """

    def __init__(self, fraction: float):
        super().__init__()
        self.fraction = fraction

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:  # (batch, 1 + patches, hidden)
        if not self.training or self.fraction == 0:
            return embeddings
        batch_size, length, hidden_size = embeddings.shape
        noise = torch.randn(batch_size, length - 1, device=embeddings.device)
        kept = noise.argsort(dim=-1)[:, : patches_kept(length - 1, self.fraction)] + 1
        kept = torch.cat([kept.new_zeros(batch_size, 1), kept], dim=1)
        return embeddings.gather(1, kept[:, :, None].expand(-1, -1, hidden_size))


def patches_kept(patches: int, fraction: float) -> int:
    """Return the number of patches that remain after dropping `fraction` of them, rounded down and at least one."""
    return max(1, int(patches * (1 - fraction)))


class BiomedCLIPVisionEmbeddings(nn.Module):
    """Patch embeddings with a leading class token and learned positions."""

    def __init__(self, config: BiomedCLIPVisionConfig):
        super().__init__()
        self.image_size = config.image_size
        self.patch_size = config.patch_size
        num_patches = (config.image_size // config.patch_size) ** 2

        # Three dimensions, as in timm: weight decay skips parameters with fewer than two.
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.position_embedding = nn.Parameter(torch.zeros(1, num_patches + 1, config.hidden_size))
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.patch_dropout = BiomedCLIPPatchDropout(config.patch_dropout)

    @torch.no_grad()
    def resize_images(self, image_size: int) -> None:
        """Resample the positions for a different image size: bicubic, antialiased, in float32.

        This equals timm's `resample_abs_pos_embed`, which open_clip uses to change the resolution of a checkpoint.
        `interpolate_pos_encoding` follows transformers instead and uses a different bicubic kernel.
        """
        if image_size == self.image_size:
            return
        old, new = self.image_size // self.patch_size, image_size // self.patch_size
        class_position, patch_positions = self.position_embedding[:, :1], self.position_embedding[:, 1:]
        grid = patch_positions.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
        grid = nn.functional.interpolate(grid, size=(new, new), mode="bicubic", antialias=True)
        patch_positions = grid.flatten(2).transpose(1, 2).to(class_position.dtype)
        self.position_embedding = nn.Parameter(
            torch.cat([class_position, patch_positions], dim=1), requires_grad=self.position_embedding.requires_grad
        )
        self.image_size = image_size

    def interpolate_position_embedding(self, height: int, width: int) -> torch.Tensor:
        """Interpolate the learned positions for images of `height` x `width` pixels (bicubic)."""
        class_position, patch_positions = self.position_embedding[:, :1], self.position_embedding[:, 1:]
        side = torch_int(patch_positions.shape[1] ** 0.5)
        grid = patch_positions.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        grid = nn.functional.interpolate(
            grid, size=(height // self.patch_size, width // self.patch_size), mode="bicubic", align_corners=False
        )
        return torch.cat([class_position, grid.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        batch_size, _, height, width = pixel_values.shape
        if not interpolate_pos_encoding and (height, width) != (self.image_size, self.image_size):
            raise ValueError(
                f"`pixel_values` contains images of {height} x {width} pixels, but the model expects {self.image_size} "
                f"x {self.image_size}. Resize them with the processor, or pass `interpolate_pos_encoding=True`."
            )
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        patches = patches.flatten(2).transpose(1, 2)  # (batch, hidden, rows, columns) -> (batch, patches, hidden)
        embeddings = torch.cat([self.class_embedding.expand(batch_size, -1, -1), patches], dim=1)
        if interpolate_pos_encoding:
            embeddings = embeddings + self.interpolate_position_embedding(height, width)
        else:
            embeddings = embeddings + self.position_embedding
        return self.patch_dropout(self.dropout(embeddings))


class BiomedCLIPTextEmbeddings(nn.Module):
    """Word, token type and position embeddings, followed by LayerNorm."""

    def __init__(self, config: BiomedCLIPTextConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        batch_size, length, _ = inputs_embeds.shape
        if position_ids is None:
            self.check_length(length)
            # Not a buffer: a buffer that is not saved stays empty if a model is created on the meta device and filled
            # with `load_state_dict`.
            position_ids = torch.arange(length, device=inputs_embeds.device)[None]
        if token_type_ids is None:
            token_type_ids = torch.zeros((batch_size, length), dtype=torch.long, device=inputs_embeds.device)
        # Add in the same order as BERT, because the order affects the last bit.
        embeddings = inputs_embeds + self.token_type_embeddings(token_type_ids)
        embeddings = embeddings + self.position_embeddings(position_ids)
        return self.dropout(self.layer_norm(embeddings))

    def check_length(self, length: int) -> None:
        """Raise `ValueError` if texts have more tokens than the model has positions."""
        if length > self.position_embeddings.num_embeddings:
            raise ValueError(
                f"`input_ids` contains texts of {length} tokens, but the model has only "
                f"{self.position_embeddings.num_embeddings} positions. Let the processor truncate them "
                "(`truncation=True`, the default)."
            )


class BiomedCLIPProjection(nn.Linear):
    """Linear layer without bias, with the default initialization of PyTorch, as in open_clip."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)


class BiomedCLIPTextProjection(nn.Module):
    """Two-layer projection of the text tower (`mlp` in open_clip). The inner width is the mean of both outer widths."""

    def __init__(self, config: BiomedCLIPTextConfig):
        super().__init__()
        inner_size = (config.hidden_size + config.projection_dim) // 2
        self.fc1 = BiomedCLIPProjection(config.hidden_size, inner_size)
        self.activation_fn = nn.GELU()
        self.fc2 = BiomedCLIPProjection(inner_size, config.projection_dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


def _init_like_torch(module: nn.Linear | nn.Conv2d) -> None:
    """Initialize a layer as PyTorch does: uniform in [-1 / sqrt(inputs), 1 / sqrt(inputs)]."""
    init.kaiming_uniform_(module.weight, a=math.sqrt(5))
    if module.bias is not None:
        bound = module.weight[0].numel() ** -0.5
        init.uniform_(module.bias, -bound, bound)


def _other_weights(*modules: str) -> list[str]:
    """Return patterns for the weights of the whole model that one of its parts does not have."""
    return [*(rf"^{module}\." for module in modules), "^logit_(scale|bias)$"]


class BiomedCLIPPreTrainedModel(PreTrainedModel):
    """Base class: loading, saving and weight initialization."""

    config: BiomedCLIPConfig
    config_class = BiomedCLIPConfig
    base_model_prefix = "biomedclip"
    # Save the code with the weights. The configuration maps Auto classes to models.
    _auto_class = "AutoModel"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = [
        "BiomedCLIPTextEmbeddings",
        "BiomedCLIPVisionEmbeddings",
        "BiomedCLIPTextLayer",
        "BiomedCLIPVisionLayer",
        "BiomedCLIPCoAttentionLayer",
        "CLIPTextEmbeddings",
        "CLIPEncoderLayer",
    ]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def get_input_embeddings(self) -> nn.Module:
        """Return the word embeddings, or the patch embedding of a model without text."""
        tower = getattr(self, "text_model", getattr(self, "vision_model", None))
        return super().get_input_embeddings() if tower is None else tower.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings, or the patch embedding of a model without text."""
        tower = getattr(self, "text_model", getattr(self, "vision_model", None))
        (super() if tower is None else tower).set_input_embeddings(value)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # transformers initializes linear layers, embeddings and LayerNorm. The rest follows open_clip with timm's ViT.
        super()._init_weights(module)
        if isinstance(module, BiomedCLIPVisionEmbeddings):
            init.normal_(module.class_embedding, std=1e-6)
            init.normal_(module.position_embedding, std=self.config.initializer_range)
            _init_like_torch(module.patch_embedding)
        elif isinstance(module, BiomedCLIPProjection):
            _init_like_torch(module)
        elif isinstance(module, nn.Linear) and module is getattr(self, "text_projection", None):
            init.normal_(module.weight, std=module.in_features**-0.5)  # projection of CLIP's text tower
        elif isinstance(module, BiomedCLIPModel):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
            if module.logit_bias is not None:
                init.constant_(module.logit_bias, self.config.logit_bias_init_value)


class BiomedCLIPTextModel(BiomedCLIPPreTrainedModel):
    """The text tower: BERT without the pooler.

    Example:
    ```python
    >>> import torch
    >>> from biomedclip import BiomedCLIPTextConfig, BiomedCLIPTextModel

    >>> model = BiomedCLIPTextModel(BiomedCLIPTextConfig(num_hidden_layers=2)).eval()
    >>> model(input_ids=torch.tensor([[2, 1805, 3]])).pooler_output.shape
    torch.Size([1, 768])
    ```
    """

    config: BiomedCLIPTextConfig
    base_model_prefix = "text_model"
    main_input_name = "input_ids"
    input_modalities = ("text",)
    _input_embed_layer = "word_embeddings"
    _keys_to_ignore_on_load_unexpected = _other_weights("vision_model", "visual_projection", "text_projection")
    _can_record_outputs = {"hidden_states": BiomedCLIPTextLayer, "attentions": BiomedCLIPAttention}

    def __init__(self, config: BiomedCLIPTextConfig):
        if config.model_type != BiomedCLIPTextConfig.model_type:
            raise ValueError(
                f"`text_config` is a {config.model_type}, but this model needs a BERT text tower. Only "
                "`BiomedCLIPModel` supports CLIP's text tower."
            )
        super().__init__(config)
        self.embeddings = BiomedCLIPTextEmbeddings(config)
        self.layers = nn.ModuleList([BiomedCLIPTextLayer(config) for _ in range(config.num_hidden_layers)])
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode texts.

        Args:
            input_ids (`torch.Tensor` of shape `(batch_size, sequence_length)`): Token ids.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): 1 for tokens, 0 for
                padding. By default, positions with `pad_token_id` are masked, as in open_clip.
            token_type_ids (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): Segment ids of BERT.
                The default is 0.
            position_ids (`torch.Tensor`, *optional*): Positions of the tokens. The default is 0, 1, 2, ...
            inputs_embeds (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*): Word
                embeddings, instead of `input_ids`.
            kwargs: Additional options of transformers, such as `output_hidden_states`. With `cu_seq_lens_q`, the texts
                are packed into one row without padding (see [`pack_texts`]), and no attention weights are returned.

        Returns:
            `BaseModelOutputWithPooling`. `pooler_output` of shape `(batch_size, hidden_size)` is the last hidden state
            of `[CLS]`.

        Raises:
            ValueError: If not exactly one of `input_ids` and `inputs_embeds` is passed, if a text has more tokens
                than the model has positions, or if packed texts are incomplete.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of `input_ids` and `inputs_embeds`.")
        edges = kwargs.get("cu_seq_lens_q")
        if edges is not None:
            longest = kwargs.get("max_length_q")
            shape = (inputs_embeds if input_ids is None else input_ids).shape
            check_packed(shape, attention_mask, position_ids, longest)
            self.embeddings.check_length(longest)
        elif attention_mask is None and input_ids is not None and self.config.pad_token_id is not None:
            attention_mask = (input_ids != self.config.pad_token_id).long()

        hidden_states = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)
        if edges is None:
            attention_mask = create_bidirectional_mask(
                config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
            )
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)

        pooled = hidden_states[:, 0] if edges is None else hidden_states[0].index_select(0, edges[:-1])
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)


class BiomedCLIPCausalTextModel(CLIPTextModel):
    """The text tower of CLIP: GPT-2 blocks with a causal mask, pooled at the end of the text.

    Random weights are initialized as in open_clip. transformers swaps the scales of the input and output
    projections of attention.
    """

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self.embeddings:
            super()._init_weights(module)  # also initializes the position ids, which are not saved
            init.normal_(module.position_embedding.weight, std=0.01)
            return
        PreTrainedModel._init_weights(self, module)
        width = self.config.hidden_size
        out_std = width**-0.5 * (2 * self.config.num_hidden_layers) ** -0.5
        for layer in self.encoder.layers:
            attention, mlp = layer.self_attn, layer.mlp
            if module in (attention.q_proj, attention.k_proj, attention.v_proj):
                init.normal_(module.weight, std=width**-0.5)
            elif module in (attention.out_proj, mlp.fc2):
                init.normal_(module.weight, std=out_std)
            elif module is mlp.fc1:
                init.normal_(module.weight, std=(2 * width) ** -0.5)
            if module in (mlp.fc1, mlp.fc2):
                init.uniform_(module.bias, -(module.in_features**-0.5), module.in_features**-0.5)


class BiomedCLIPVisionModel(BiomedCLIPPreTrainedModel):
    """The image tower: ViT with a class token.

    Example:
    ```python
    >>> import torch
    >>> from biomedclip import BiomedCLIPVisionConfig, BiomedCLIPVisionModel

    >>> model = BiomedCLIPVisionModel(BiomedCLIPVisionConfig(num_hidden_layers=2)).eval()
    >>> model(pixel_values=torch.zeros(1, 3, 224, 224)).pooler_output.shape
    torch.Size([1, 768])
    ```
    """

    config: BiomedCLIPVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _input_embed_layer = "patch_embedding"
    _keys_to_ignore_on_load_unexpected = _other_weights("text_model", "text_projection", "visual_projection")
    _can_record_outputs = {"hidden_states": BiomedCLIPVisionLayer, "attentions": BiomedCLIPAttention}

    def __init__(self, config: BiomedCLIPVisionConfig):
        super().__init__(config)
        self.embeddings = BiomedCLIPVisionEmbeddings(config)
        self.layers = nn.ModuleList([BiomedCLIPVisionLayer(config) for _ in range(config.num_hidden_layers)])
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode images.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): Normalized pixels.
            interpolate_pos_encoding (`bool`, defaults to `False`): Accept images of any size by interpolating the
                positions.
            kwargs: Additional options of transformers, such as `output_hidden_states`.

        Returns:
            `BaseModelOutputWithPooling`. `pooler_output` of shape `(batch_size, hidden_size)` is the class token after
            the last LayerNorm.

        Raises:
            ValueError: If the image size differs from that of the model and `interpolate_pos_encoding` is `False`.
        """
        if pixel_values is None:
            raise ValueError("Pass `pixel_values`.")
        if kwargs.get("cu_seq_lens_q") is not None:
            raise ValueError("Only texts can be packed. Do not pass `cu_seq_lens_q` with images.")
        hidden_states = self.embeddings(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        hidden_states = self.post_layernorm(hidden_states)

        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])


class BiomedCLIPTextModelWithProjection(BiomedCLIPPreTrainedModel):
    """The text tower with its projection, for embedding texts without loading the image tower."""

    config: BiomedCLIPTextConfig
    base_model_prefix = "text_model"
    main_input_name = "input_ids"
    input_modalities = ("text",)
    _keys_to_ignore_on_load_unexpected = _other_weights("vision_model", "visual_projection")

    def __init__(self, config: BiomedCLIPTextConfig):
        super().__init__(config)
        self.text_model = BiomedCLIPTextModel._from_config(config)
        self.text_projection = BiomedCLIPTextProjection(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CLIPTextModelOutput:
        """Embed texts (see [`BiomedCLIPTextModel.forward`] for the arguments). `text_embeds` are not normalized."""
        outputs = self.text_model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        return CLIPTextModelOutput(
            text_embeds=self.text_projection(outputs.pooler_output),
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class BiomedCLIPVisionModelWithProjection(BiomedCLIPPreTrainedModel):
    """The image tower with its projection, for embedding images without loading the text tower."""

    config: BiomedCLIPVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _keys_to_ignore_on_load_unexpected = _other_weights("text_model", "text_projection")

    def __init__(self, config: BiomedCLIPVisionConfig):
        super().__init__(config)
        self.vision_model = BiomedCLIPVisionModel._from_config(config)
        self.visual_projection = BiomedCLIPProjection(config.hidden_size, config.projection_dim)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CLIPVisionModelOutput:
        """Embed images (see [`BiomedCLIPVisionModel.forward`] for the arguments). `image_embeds` are not normalized."""
        outputs = self.vision_model(
            pixel_values=pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
        )
        return CLIPVisionModelOutput(
            image_embeds=self.visual_projection(outputs.pooler_output),
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class BiomedCLIPModel(BiomedCLIPPreTrainedModel):
    """Both towers with their projections, the temperature and, for the SigLIP loss, a bias of the logits.

    Example:
    ```python
    >>> from biomedclip import BiomedCLIPModel
    >>> from biomedclip.processing import BiomedCLIPProcessor, read_image

    >>> model = BiomedCLIPModel.from_pretrained("out/model")
    >>> processor = BiomedCLIPProcessor.from_pretrained("out/model")
    >>> inputs = processor(text=["chest X-ray", "brain MRI"], images=read_image("scan.png"), return_tensors="pt")
    >>> model(**inputs).logits_per_image.softmax(dim=-1)
    ```
    """

    config: BiomedCLIPConfig

    def __init__(self, config: BiomedCLIPConfig):
        super().__init__(config)
        if isinstance(config.text_config, CLIPTextConfig):
            self.text_model = BiomedCLIPCausalTextModel._from_config(config.text_config)
            self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        else:
            self.text_model = BiomedCLIPTextModel._from_config(config.text_config)
            self.text_projection = BiomedCLIPTextProjection(config.text_config)
        self.vision_model = BiomedCLIPVisionModel._from_config(config.vision_config)
        self.visual_projection = BiomedCLIPProjection(config.vision_config.hidden_size, config.projection_dim)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        bias = config.logit_bias_init_value
        self.register_parameter("logit_bias", None if bias is None else nn.Parameter(torch.tensor(float(bias))))
        self.post_init()

    def save_pretrained(
        self,
        save_directory: Any,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save the model, its code, and the files with which `SentenceTransformer(save_directory)` loads it.

        The arguments are those of `PreTrainedModel.save_pretrained`. Save the processor into the same folder.
        """
        hub_names = ("repo_id", "commit_message", "create_pr", "private")
        hub = {name: kwargs.pop(name) for name in hub_names if name in kwargs}
        super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)
        if not is_main_process:
            return
        for name, content in SENTENCE_TRANSFORMERS_FILES.items():
            (Path(save_directory) / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        if push_to_hub:  # `PreTrainedModel.save_pretrained` would upload before these files are written
            self.push_to_hub(hub.pop("repo_id", Path(save_directory).name), token=kwargs.get("token"), **hub)

    @property
    def supports_packed_texts(self) -> bool:
        """Whether the text tower reads texts without padding (see [`pack_texts`]). CLIP's does not."""
        return isinstance(self.text_model, BiomedCLIPTextModel)

    def resize_images(self, image_size: int) -> None:
        """Change the image size of the model and resample its positions.

        Args:
            image_size: Side of the images in pixels.

        Raises:
            ValueError: If `image_size` is not a multiple of the patch size.
        """
        self.vision_model.config.image_size = image_size  # the same object as `self.config.vision_config`
        self.vision_model.config.validate_architecture()
        self.vision_model.embeddings.resize_images(image_size)

    def set_patch_dropout(self, fraction: float) -> None:
        """Set the fraction of patches that are dropped from each image during training.

        Args:
            fraction: Fraction of the patches, in [0, 1).

        Raises:
            ValueError: If `fraction` is not in this range.
        """
        self.vision_model.config.patch_dropout = fraction
        self.vision_model.config.validate_architecture()
        self.vision_model.embeddings.patch_dropout.fraction = fraction

    def start_logit_bias(self, bias: float, scale: float) -> None:
        """Add a bias to the logits and reset the temperature. Both values are stored in the configuration.

        Both are set together, because a bias is suitable only for one temperature.

        Args:
            bias: Initial value of `logit_bias`.
            scale: New value of `logit_scale`, the log of the inverse temperature.
        """
        self.config.logit_bias_init_value, self.config.logit_scale_init_value = bias, scale
        with torch.no_grad():
            self.logit_scale.fill_(scale)
        self.logit_bias = nn.Parameter(torch.full_like(self.logit_scale, bias))

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Embed texts.

        The arguments are those of [`BiomedCLIPTextModel.forward`]. A CLIP text tower needs padded `input_ids` and
        ignores `token_type_ids`.

        Returns:
            `BaseModelOutputWithPooling`. `pooler_output` of shape `(texts, projection_dim)` contains the projected
            features. They are not normalized.
        """
        if self.supports_packed_texts:
            kwargs |= {"token_type_ids": token_type_ids, "inputs_embeds": inputs_embeds}
        elif kwargs.get("cu_seq_lens_q") is not None:
            raise ValueError("CLIP's text tower needs padded texts, not packed ones (`cu_seq_lens_q`).")
        outputs = self.text_model(input_ids, attention_mask, position_ids=position_ids, return_dict=True, **kwargs)
        outputs.pooler_output = self.text_projection(outputs.pooler_output)
        return outputs

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Embed images.

        The arguments are those of [`BiomedCLIPVisionModel.forward`].

        Returns:
            `BaseModelOutputWithPooling`. `pooler_output` of shape `(images, projection_dim)` contains the projected
            features. They are not normalized.
        """
        outputs = self.vision_model(
            pixel_values=pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True, **kwargs
        )
        outputs.pooler_output = self.visual_projection(outputs.pooler_output)
        return outputs

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        return_loss: bool = False,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CLIPOutput:
        """Compare images with texts.

        Args:
            input_ids (`torch.Tensor` of shape `(texts, sequence_length)`): Token ids.
            pixel_values (`torch.Tensor` of shape `(images, num_channels, height, width)`): Normalized pixels.
            attention_mask (`torch.Tensor` of shape `(texts, sequence_length)`, *optional*): 1 for tokens, 0 for
                padding.
            token_type_ids (`torch.Tensor` of shape `(texts, sequence_length)`, *optional*): Segment ids of BERT.
            position_ids (`torch.Tensor`, *optional*): Positions of the tokens.
            return_loss (`bool`, defaults to `False`): Also return the symmetric InfoNCE loss, where text i belongs to
                image i. Only the pairs of this process are used. [`ContrastiveTrainer`] gathers those of all processes.
            interpolate_pos_encoding (`bool`, defaults to `False`): Accept images of any size.
            kwargs: Additional options of transformers, such as `output_hidden_states`.

        Returns:
            `CLIPOutput`. `logits_per_image` of shape `(images, texts)` are cosine similarities times
            `logit_scale.exp()`, plus `logit_bias` if the model has one. `text_embeds` and `image_embeds` are
            L2-normalized.

        Raises:
            ValueError: If an input is missing, or if `return_loss` is set and the numbers of images and texts differ.
        """
        boundaries = {name: kwargs.pop(name) for name in BOUNDARIES if name in kwargs}  # of texts, not of images
        image_outputs = self.get_image_features(
            pixel_values=pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
        )
        text_outputs = self.get_text_features(
            input_ids, attention_mask, token_type_ids, position_ids, **boundaries, **kwargs
        )
        image_embeds = nn.functional.normalize(image_outputs.pooler_output, dim=-1)
        text_embeds = nn.functional.normalize(text_outputs.pooler_output, dim=-1)

        # With `device_map`, the towers can be on different devices. The logits are computed on the device of the texts.
        logits_per_text = text_embeds @ image_embeds.t().to(text_embeds.device)
        logits_per_text = logits_per_text * self.logit_scale.exp().to(text_embeds.device)
        if self.logit_bias is not None:
            logits_per_text = logits_per_text + self.logit_bias.to(text_embeds.device)

        loss = None
        if return_loss:
            if len(image_embeds) != len(text_embeds):
                raise ValueError(
                    f"`return_loss=True` requires pairs, but there are {len(image_embeds)} images and "
                    f"{len(text_embeds)} texts."
                )
            labels = torch.arange(len(text_embeds), device=logits_per_text.device)
            text_loss = nn.functional.cross_entropy(logits_per_text, labels)
            image_loss = nn.functional.cross_entropy(logits_per_text.t(), labels)
            loss = (text_loss + image_loss) / 2

        return CLIPOutput(
            loss=loss,
            logits_per_image=logits_per_text.t(),
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text_outputs,
            vision_model_output=image_outputs,
        )


class BiomedCLIPForImageClassification(BiomedCLIPPreTrainedModel):
    """The image tower with a linear classifier on its class token. `config.num_labels` sets the number of classes."""

    config: BiomedCLIPConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _keys_to_ignore_on_load_unexpected = _other_weights("text_model", "text_projection", "visual_projection")

    def __init__(self, config: BiomedCLIPConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vision_model = BiomedCLIPVisionModel._from_config(config.vision_config)
        self.classifier = nn.Linear(config.vision_config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """Classify images.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): Normalized pixels.
            labels (`torch.Tensor` of shape `(batch_size,)`, *optional*): Class indices, or regression targets
                if `config.num_labels` is 1. With several labels per image: 0 or 1, of shape `(batch_size, num_labels)`.
                `config.problem_type` overrides the choice.
            interpolate_pos_encoding (`bool`, defaults to `False`): Accept images of any size.
            kwargs: Additional options of transformers, such as `output_hidden_states`.
        """
        outputs = self.vision_model(
            pixel_values=pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
        )
        logits = self.classifier(outputs.pooler_output)
        loss = self.loss_function(labels, logits, self.config) if labels is not None else None
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class BiomedCLIPCoAttentionLayer(nn.Module):
    """Block of one modality in the co-attention head: self-attention, cross-attention and feed-forward.

    Each is followed by LayerNorm. The block equals `BertCrossLayer` of METER, the cross-attention block of BERT without
    a causal mask.
    """

    def __init__(self, config: BiomedCLIPCoAttentionConfig):
        super().__init__()
        self.self_attn = BiomedCLIPAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.cross_attn = BiomedCLIPAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = BiomedCLIPMLP(config)
        self.layer_norm3 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        other_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        other_attention_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        attention_output, _ = self.self_attn(hidden_states, attention_mask, **kwargs)
        hidden_states = self.layer_norm1(self.dropout(attention_output) + hidden_states)
        attention_output, _ = self.cross_attn(hidden_states, other_attention_mask, other_states, **kwargs)
        hidden_states = self.layer_norm2(self.dropout(attention_output) + hidden_states)
        mlp_output = self.mlp(hidden_states)
        return self.layer_norm3(self.dropout(mlp_output) + hidden_states)


class BiomedCLIPCoAttention(BiomedCLIPPreTrainedModel):
    """Co-attention head of METER.

    Each modality has its own blocks, which attend to the output of the previous block of the other modality. The
    first token of each modality is pooled.
    """

    config: BiomedCLIPCoAttentionConfig
    base_model_prefix = "co_attention"
    main_input_name = "text_states"

    def __init__(self, config: BiomedCLIPCoAttentionConfig):
        super().__init__(config)
        self.token_type_embeddings = nn.Embedding(2, config.hidden_size)  # text, image
        self.text_layers = nn.ModuleList([BiomedCLIPCoAttentionLayer(config) for _ in range(config.num_hidden_layers)])
        self.image_layers = nn.ModuleList([BiomedCLIPCoAttentionLayer(config) for _ in range(config.num_hidden_layers)])
        self.text_pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.image_pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        text_states: torch.Tensor,
        image_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Return the concatenated pooled states of text and image, of shape `(batch_size, 2 * hidden_size)`."""
        text_type, image_type = self.token_type_embeddings(torch.arange(2, device=text_states.device))
        text, image = text_states + text_type, image_states + image_type
        # Both modalities attend to text tokens, but not to padding. All patches are attended to.
        word_mask = create_bidirectional_mask(config=self.config, inputs_embeds=text, attention_mask=attention_mask)
        word_mask_of_patches = create_bidirectional_mask(
            config=self.config, inputs_embeds=image, attention_mask=attention_mask, encoder_hidden_states=text
        )
        for text_layer, image_layer in zip(self.text_layers, self.image_layers, strict=True):
            text, image = (
                text_layer(text, image, word_mask, None, **kwargs),
                image_layer(image, text, None, word_mask_of_patches, **kwargs),
            )
        return torch.tanh(torch.cat([self.text_pooler(text[:, 0]), self.image_pooler(image[:, 0])], dim=-1))


class BiomedCLIPForVisualQuestionAnswering(BiomedCLIPPreTrainedModel):
    """Both towers with the co-attention head of METER and a classifier over a fixed list of answers.

    The answers are `config.id2label`. If a checkpoint has no such head, the head is initialized randomly.

    Example:
    ```python
    >>> from biomedclip import BiomedCLIPForVisualQuestionAnswering
    >>> from biomedclip.processing import BiomedCLIPProcessor, read_image

    >>> model = BiomedCLIPForVisualQuestionAnswering.from_pretrained("answers")
    >>> processor = BiomedCLIPProcessor.from_pretrained("answers")
    >>> inputs = processor(text=["Is the heart enlarged?"], images=read_image("scan.png"), return_tensors="pt")
    >>> model.config.id2label[model(**inputs).logits.argmax().item()]
    ```
    """

    config: BiomedCLIPConfig
    _keys_to_ignore_on_load_unexpected = _other_weights("text_projection", "visual_projection")

    def __init__(self, config: BiomedCLIPConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.text_model = BiomedCLIPTextModel._from_config(config.text_config)
        self.vision_model = BiomedCLIPVisionModel._from_config(config.vision_config)
        width = config.co_attention_config.hidden_size
        self.text_transform = nn.Linear(config.text_config.hidden_size, width)
        self.image_transform = nn.Linear(config.vision_config.hidden_size, width)
        self.co_attention = BiomedCLIPCoAttention._from_config(config.co_attention_config)
        self.classifier = nn.Sequential(
            nn.Linear(2 * width, 2 * width),
            nn.LayerNorm(2 * width),
            nn.GELU(),
            nn.Linear(2 * width, config.num_labels),
        )
        self.post_init()

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save the model with its code and the code of its pipeline."""
        from .pipeline_biomedclip import VisualQuestionAnsweringPipeline

        self.config.custom_pipelines = VisualQuestionAnsweringPipeline.custom_pipelines()
        super().save_pretrained(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BiomedCLIPVisualQuestionAnsweringOutput:
        """Answer questions about images.

        Args:
            input_ids (`torch.Tensor` of shape `(batch_size, sequence_length)`): Token ids of the questions.
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): One image per question.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): 1 for tokens, 0 for
                padding. By default, positions with `pad_token_id` are masked.
            token_type_ids (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): Segment ids of BERT.
            position_ids (`torch.Tensor`, *optional*): Positions of the tokens.
            inputs_embeds (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*): Word
                embeddings, instead of `input_ids`.
            labels (`torch.Tensor`, *optional*): Index of the answer of each question, of shape `(batch_size,)`. A
                negative index excludes a question from the loss. If several answers are right: scores of all answers
                in [0, 1], of shape `(batch_size, num_labels)`.
            interpolate_pos_encoding (`bool`, defaults to `False`): Accept images of any size.
            kwargs: Additional options of transformers, such as `output_hidden_states`.

        Raises:
            ValueError: If an input is missing, or if the number of images differs from the number of questions.
        """
        image_outputs = self.vision_model(
            pixel_values=pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True, **kwargs
        )
        if attention_mask is None and input_ids is not None and self.config.text_config.pad_token_id is not None:
            attention_mask = (input_ids != self.config.text_config.pad_token_id).long()
        text_outputs = self.text_model(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **kwargs
        )
        text_states = self.text_transform(text_outputs.last_hidden_state)
        # With `device_map`, the towers can be on different devices. The head is on the device of the texts.
        image_states = self.image_transform(image_outputs.last_hidden_state).to(text_states.device)
        if len(text_states) != len(image_states):
            raise ValueError(
                f"Each question requires one image, but there are {len(text_states)} questions and "
                f"{len(image_states)} images."
            )
        logits = self.classifier(self.co_attention(text_states, image_states, attention_mask, **kwargs))
        return BiomedCLIPVisualQuestionAnsweringOutput(
            loss=None if labels is None else answer_loss(logits, labels),
            logits=logits,
            text_model_output=text_outputs,
            vision_model_output=image_outputs,
        )


def answer_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute the loss of METER (`compute_vqa`): binary cross-entropy, summed over answers, averaged over questions.

    `labels` contains the index of the answer of each question (negative if it has none), or scores of all answers in
    [0, 1] with the shape of `logits`. The loss is NaN if no question has a label, as in PyTorch's cross-entropy.
    """
    labels = labels.to(logits.device)
    if labels.ndim == 1:
        logits, labels = logits[labels >= 0], labels[labels >= 0]
        labels = nn.functional.one_hot(labels, logits.shape[-1])
    return nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype)) * logits.shape[-1]


__all__ = [
    "BiomedCLIPForImageClassification",
    "BiomedCLIPForVisualQuestionAnswering",
    "BiomedCLIPModel",
    "BiomedCLIPPreTrainedModel",
    "BiomedCLIPTextModel",
    "BiomedCLIPTextModelWithProjection",
    "BiomedCLIPVisionModel",
    "BiomedCLIPVisionModelWithProjection",
]

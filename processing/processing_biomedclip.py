"""Processor of BiomedCLIP: the image processor and a BERT tokenizer."""

import html
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

# In version 5.17, importing this from `transformers` itself requires torchvision.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin
from transformers.utils import cached_file, logging

from .image_processing_biomedclip import BiomedCLIPImageProcessor


logger = logging.get_logger(__name__)

# Without this entry, AutoImageProcessor would ask whether to run the copy of the class in the folder. The key is never
# used. Both backends are the same class, because torchvision produces different pixels when resizing.
AutoImageProcessor.register(
    BiomedCLIPImageProcessor,
    image_processor_classes=dict.fromkeys(("pil", "torchvision"), BiomedCLIPImageProcessor),
    exist_ok=True,
)

CONTEXT_LENGTH = 256  # tokens, as in the training of BiomedCLIP
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
LARGEST_LIMIT = 1_000_000  # transformers represents "no limit" as 10^30
# Number of characters to keep per token. WordPiece reads a word of more than 100 characters as one token, so this is
# enough unless a text consists mostly of whitespace, longer words or HTML entities.
CHARACTERS_PER_TOKEN = 128


def cut_text(text: str, max_tokens: int) -> str:
    """Cut a text that is much longer than the tokens to keep, so that cleaning and tokenization take limited time.

    The first `max_tokens` tokens of the result are those of the text if the result has that many.
    """
    return text[: max_tokens * CHARACTERS_PER_TOKEN]


@cache
def _ftfy() -> Any:
    """Return ftfy, or None. It is optional, because this file is saved with checkpoints. It takes half a second."""
    try:
        import ftfy
    except ImportError:
        return None
    return ftfy


def clean_text(text: str) -> str:
    """Clean a text before tokenization, like open_clip and the training of BiomedCLIP.

    ftfy repairs encodings and replaces typographic quotes, ligatures and full-width letters. HTML entities are
    unescaped twice, and whitespace is collapsed. If ftfy is not installed, its step is skipped with one warning.
    """
    ftfy = _ftfy()
    if ftfy is None:
        logger.warning_once(
            "ftfy is not installed: typographic quotes, ligatures and broken encodings are not replaced, so "
            "tokens differ from those in the training of BiomedCLIP. Run: pip install ftfy"
        )
    else:
        text = ftfy.fix_text(text)
    return " ".join(html.unescape(html.unescape(text)).split())


class BiomedCLIPProcessorKwargs(ProcessingKwargs, total=False):
    """Default arguments of the tokenizer."""

    _defaults = {"text_kwargs": {"padding": True, "truncation": True, "return_token_type_ids": False}}


class BiomedCLIPProcessor(ProcessorMixin):
    r"""Prepare images and texts for the model.

    By default, texts are cleaned as in training ([`clean_text`]), truncated at `tokenizer.model_max_length` tokens, and
    padded to the longest text of the batch.

    Args:
        image_processor ([`BiomedCLIPImageProcessor`]): The image processor.
        tokenizer (`BertTokenizer`): The tokenizer. If it has no limit, like the published one, the limit is 256 tokens.

    Example:
    ```python
    >>> from biomedclip.processing import BiomedCLIPProcessor, read_image

    >>> processor = BiomedCLIPProcessor.from_pretrained("out/model")
    >>> inputs = processor(text=["chest X-ray"], images=read_image("scan.png"), return_tensors="pt")
    ```
    """

    _auto_class = "AutoProcessor"  # saves the code next to the settings
    valid_processor_kwargs = BiomedCLIPProcessorKwargs

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        if tokenizer is not None and tokenizer.model_max_length > LARGEST_LIMIT:
            tokenizer.model_max_length = CONTEXT_LENGTH
        super().__init__(image_processor, tokenizer, **kwargs)
        # `save_pretrained` would add this. A processor should not change when it is saved and loaded.
        self.auto_map = {"AutoProcessor": "processing_biomedclip.BiomedCLIPProcessor"}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> "BiomedCLIPProcessor":
        """Load a processor. Code in the folder is only run if `trust_remote_code=True`.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): A folder or a model id on the Hub.
            kwargs: Additional arguments of `ProcessorMixin.from_pretrained`.

        Returns:
            The processor.

        Raises:
            ValueError: If the tokenizer needs code from the folder, or if the settings contain an audio tokenizer.
        """
        kwargs.setdefault("trust_remote_code", False)
        if not kwargs["trust_remote_code"]:
            _refuse_audio_tokenizer(pretrained_model_name_or_path, kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> Any:
        """Save the processor, without the truncation and padding of its last call.

        Args:
            save_directory (`str` or `os.PathLike`): Folder to write.
            kwargs: Additional arguments of `ProcessorMixin.save_pretrained`.

        Returns:
            The paths of the files.
        """
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:  # they would become defaults of the loaded processor
            backend.no_truncation()
            backend.no_padding()
        return super().save_pretrained(save_directory, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that a call returns by default, without `token_type_ids`, which are always zero."""
        return [name for name in super().model_input_names if name != "token_type_ids"]

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        """Prepare images and texts.

        Args:
            images: An image or a list of images: Pillow images, arrays or tensors.
            text: A text or a list of texts.
            kwargs: Options of the image processor and the tokenizer, such as `return_tensors="pt"`.

        Returns:
            A `BatchFeature` with `input_ids` and `attention_mask` of shape `(texts, longest)` if there are texts, and
            `pixel_values` of shape `(images, 3, height, width)` if there are images.
        """
        limit = self._token_limit(kwargs) if text is not None else 0
        if isinstance(text, str):
            text = clean_text(cut_text(text, limit))
        elif text is not None:
            text = [clean_text(cut_text(item, limit)) if isinstance(item, str) else item for item in text]
        return super().__call__(images=images, text=text, **kwargs)

    def _token_limit(self, kwargs: dict[str, Any]) -> int:
        """Return the number of leading tokens to keep, or `sys.maxsize` if texts are not truncated on the right."""
        options = {**kwargs.get("common_kwargs", {}), **kwargs.get("text_kwargs", {}), **kwargs}
        truncation = options.get("truncation", True)
        cuts = truncation is not None and truncation is not False and str(truncation) != "do_not_truncate"
        side = options.get("truncation_side") or self.tokenizer.truncation_side
        if not cuts or side != "right" or options.get("return_overflowing_tokens"):
            return sys.maxsize
        return options.get("max_length") or self.tokenizer.model_max_length


def _refuse_audio_tokenizer(name: Any, kwargs: dict[str, Any]) -> None:
    """Raise an error for a setting that makes transformers load a model from elsewhere."""
    hub = {key: kwargs[key] for key in _HUB_ARGUMENTS if key in kwargs}
    for file in ("processor_config.json", "audio_tokenizer_config.json"):
        path = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub)
        if path is None:
            continue
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if file.startswith("audio") or "audio_tokenizer" in content:
            raise ValueError(f"{path}: BiomedCLIP has no audio tokenizer. Remove the setting audio_tokenizer.")


__all__ = ["BiomedCLIPProcessor", "clean_text", "cut_text"]

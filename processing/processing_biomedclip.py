"""Processor of BiomedCLIP: its image processor and a BERT tokenizer in one object."""

import html
import json
import sys
from pathlib import Path
from typing import Any

# Not from the top: there transformers 5.17 puts a stand-in that asks for torchvision, which we do not need.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin
from transformers.utils import cached_file, logging

from .image_processing_biomedclip import BiomedCLIPImageProcessor


# In a `try`, because this file also travels with checkpoints as remote code, to machines that may lack ftfy.
try:
    import ftfy
except ImportError:
    ftfy = None

logger = logging.get_logger(__name__)

# AutoImageProcessor finds registered classes by their names, and without this entry it asks whether to run the copy of
# the class that lies in the folder. The key is never looked up: a processor does not know the model's configuration.
# Pillow is always used, because the resampling of torchvision gives other pixels.
AutoImageProcessor.register(
    BiomedCLIPImageProcessor,
    image_processor_classes=dict.fromkeys(("pil", "torchvision"), BiomedCLIPImageProcessor),
    exist_ok=True,
)

CONTEXT_LENGTH = 256  # tokens, as BiomedCLIP was trained
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
LARGEST_LIMIT = 1_000_000  # transformers writes «no limit» as 10^30
# Characters of a text that are kept for each token that it may have. WordPiece reads a word of more than 100 characters
# as one token, so this many hold a token of any text that is not mostly white space, longer words or HTML entities.
CHARACTERS_PER_TOKEN = 128


def cut_text(text: str, max_tokens: int) -> str:
    """Cut a text to the characters that can matter for its first tokens, so that its length costs no time.

    The token ids, cut at `max_tokens`, stay the same for a text of at most `max_tokens * CHARACTERS_PER_TOKEN`
    characters, and for any longer text of which the part that is kept has `max_tokens` tokens.

    Args:
        text: A caption or prompt, not cleaned yet.
        max_tokens: Number of tokens at which it will be cut.

    Returns:
        The text, or its beginning.
    """
    return text[: max_tokens * CHARACTERS_PER_TOKEN]


def clean_text(text: str) -> str:
    """Cleans a text as open_clip does before its tokenizer, and so as BiomedCLIP saw it in training.

    Broken encodings are mended and typographic quotes, ligatures and full-width letters made plain (ftfy), HTML
    entities resolved twice, white space collapsed.

    Args:
        text: A caption or prompt.

    Returns:
        The cleaned text. Without ftfy installed its part is left out, with one warning.
    """
    if ftfy is None:
        logger.warning_once(
            "ftfy is not installed: typographic quotes, ligatures and broken encodings stay as they are and give other "
            "tokens than BiomedCLIP was trained with. Remedy: pip install ftfy"
        )
    else:
        text = ftfy.fix_text(text)
    return " ".join(html.unescape(html.unescape(text)).split())


class BiomedCLIPProcessorKwargs(ProcessingKwargs, total=False):
    """What texts are prepared with unless the caller says otherwise."""

    _defaults = {
        "text_kwargs": {
            "padding": True,
            "truncation": True,
            "return_token_type_ids": False,
        }
    }


class BiomedCLIPProcessor(ProcessorMixin):
    r"""Prepares images and texts. By default texts are cleaned as in training ([`clean_text`]), cut at
    `tokenizer.model_max_length` tokens and padded to the longest of the batch.

    Args:
        image_processor ([`BiomedCLIPImageProcessor`]): Prepares images.
        tokenizer (`BertTokenizer`): Prepares texts. One without a limit, like the published checkpoint's, gets that of
            BiomedCLIP, 256 tokens.

    Example:
    ```python
    >>> from biomedclip.processing import BiomedCLIPProcessor, read_image

    >>> processor = BiomedCLIPProcessor.from_pretrained("out/model")
    >>> inputs = processor(text=["chest X-ray"], images=read_image("scan.png"), return_tensors="pt")
    ```
    """

    _auto_class = "AutoProcessor"  # the code is saved beside the settings
    valid_processor_kwargs = BiomedCLIPProcessorKwargs

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        if tokenizer is not None and tokenizer.model_max_length > LARGEST_LIMIT:
            tokenizer.model_max_length = CONTEXT_LENGTH
        super().__init__(image_processor, tokenizer, **kwargs)
        # What saving would add: a processor is the same before it is saved and after it is loaded.
        self.auto_map = {"AutoProcessor": "processing_biomedclip.BiomedCLIPProcessor"}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> "BiomedCLIPProcessor":
        """Loads a processor. No code of the folder is run, and no question is asked, unless `trust_remote_code=True`.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): Folder or Hub id.
            kwargs: Further arguments of `ProcessorMixin.from_pretrained`.

        Returns:
            The processor.

        Raises:
            ValueError: If the tokenizer needs code of the folder, or if the files name an audio tokenizer.
        """
        kwargs.setdefault("trust_remote_code", False)
        if not kwargs["trust_remote_code"]:
            _refuse_audio_tokenizer(pretrained_model_name_or_path, kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """What a call returns by default: BERT's tokenizer would add `token_type_ids`, which are all zero here."""
        return [name for name in super().model_input_names if name != "token_type_ids"]

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        """Args:
            images: One image or a list of them: Pillow images, arrays or tensors.
            text: One text or a list of them.
            kwargs: Options of the image processor and the tokenizer, `return_tensors="pt"` among them.

        Returns:
            A `BatchFeature` with `input_ids`, `attention_mask` of shape `(texts, longest)` and `pixel_values` of shape
            `(images, 3, height, width)`, as far as there are texts and images.
        """
        limit = self._token_limit(kwargs) if text is not None else 0
        if isinstance(text, str):
            text = clean_text(cut_text(text, limit))
        elif text is not None:
            text = [clean_text(cut_text(item, limit)) if isinstance(item, str) else item for item in text]
        return super().__call__(images=images, text=text, **kwargs)

    def _token_limit(self, kwargs: dict[str, Any]) -> int:
        """Tokens of each text that a call with these options uses; no limit if it does not cut, or cuts on the left."""
        options = {**kwargs.get("common_kwargs", {}), **kwargs.get("text_kwargs", {}), **kwargs}
        truncation = options.get("truncation", True)
        cuts = truncation is not None and truncation is not False and str(truncation) != "do_not_truncate"
        side = options.get("truncation_side") or self.tokenizer.truncation_side
        if not cuts or side != "right" or options.get("return_overflowing_tokens"):
            return sys.maxsize
        return options.get("max_length") or self.tokenizer.model_max_length


def _refuse_audio_tokenizer(name: Any, kwargs: dict[str, Any]) -> None:
    """Raises `ValueError` for a setting with which transformers would load a model from another place."""
    hub = {key: kwargs[key] for key in _HUB_ARGUMENTS if key in kwargs}
    for file in ("processor_config.json", "audio_tokenizer_config.json"):
        path = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub)
        if path is None:
            continue
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if file.startswith("audio") or "audio_tokenizer" in content:
            raise ValueError(f"{path}: audio_tokenizer names a model to load, and BiomedCLIP has none. Remove it.")


__all__ = ["BiomedCLIPProcessor", "clean_text", "cut_text"]

"""Processor of BiomedCLIP: its image processor and a BERT tokenizer in one object."""

from transformers.processing_utils import ProcessingKwargs, ProcessorMixin


CONTEXT_LENGTH = 256  # tokens, as BiomedCLIP was trained
LARGEST_LIMIT = 1_000_000  # transformers writes «no limit» as 10^30


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
    r"""
    Prepares images and texts. By default texts are cut at `tokenizer.model_max_length` tokens and padded to the longest
    of the batch.

    Args:
        image_processor ([`BiomedCLIPImageProcessor`]): Prepares images.
        tokenizer (`BertTokenizer`): Prepares texts. One without a limit, like the published checkpoint's, gets that of
            BiomedCLIP, 256 tokens.

    Example:

    ```python
    >>> import modeling_biomedclip  # registers the parts that a saved processor is loaded from
    >>> from processing import BiomedCLIPProcessor, read_image

    >>> processor = BiomedCLIPProcessor.from_pretrained("out/model")
    >>> inputs = processor(text=["chest X-ray"], images=read_image("scan.png"), return_tensors="pt")
    ```"""

    valid_processor_kwargs = BiomedCLIPProcessorKwargs

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        if tokenizer is not None and tokenizer.model_max_length > LARGEST_LIMIT:
            tokenizer.model_max_length = CONTEXT_LENGTH
        super().__init__(image_processor, tokenizer, **kwargs)


__all__ = ["BiomedCLIPProcessor"]

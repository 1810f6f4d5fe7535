"""A loaded model, and optionally an index, for the requests of many threads."""

import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from biomedclip import EmbeddingIndex, saliency_map
from biomedclip.embedding import CHARACTERS_PER_TOKEN, text_limit
from biomedclip.model_cards.escaping import one_line
from biomedclip.processing.bit_depth_biomedclip import to_8_bit
from biomedclip.processing.image_processing_biomedclip import MAX_ASPECT_RATIO
from biomedclip.processing.images.errors import ImageError
from biomedclip.processing.images.reading import decode_content

from ..classification.labels import DEFAULT_TEMPLATE
from ..cli.devices import choose_device
from ..cli.errors import UsageError
from ..cli.overlays import draw_overlay
from ..embedding.encoders import ExportedEncoder, check_encoder, label_embeds, load_encoder, text_embeds
from ..embedding.filters import parse_filter
from ..embedding.queries import check_same_model
from ..evaluation.dual_encoders import DualEncoder
from .batching import Batcher


BATCH_SIZE = 32
# Items that may wait. A prepared image of 224 pixels takes 0.6 MB.
LIMITS = {"image": 512, "text": 8192, "saliency": 16}
MAX_SEARCHES = 128  # that may wait
MAX_LABELS = 1000
MAX_CHARACTERS = 10_000  # of a text or a prompt
MAX_PROMPTS = 4096  # of all labels, and embeddings of prompts that are kept
MAX_KEPT_CHARACTERS = 10_000_000  # of the prompts whose embeddings are kept
MAX_OVERLAY = 1024  # pixels of the longer side of an overlay
MAX_NAME = 100


class InputError(ValueError):
    """Raised for labels, texts or conditions of a request that cannot be used."""


class Engine:
    """A loaded model, and optionally an index, for one process.

    All methods can be called from any thread. The model runs in one thread, in batches of the images or texts of all
    calls. The batches change only the last bits of the results. Searches run in another thread, one after the other.

    Args:
        encoder: Model from [`load_encoder`].
        index: Index of embeddings that the model computed.
        prompts: Prompts of each label, for requests without labels or without a template.
        batch_size: Largest number of images or texts that the model sees at once.

    Attributes:
        name: Hub id, or name of the folder of the model.
        device: Device of the model.
        dimension: Number of values of an embedding.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        index: EmbeddingIndex | None = None,
        prompts: Mapping[str, Sequence[str]] | None = None,
        *,
        batch_size: int = BATCH_SIZE,
    ):
        self.encoder = encoder
        self.index = index
        self.prompts = dict(prompts or {})
        self.labels = list(self.prompts)
        # The path of a folder is of no use to clients, and shows the names of users.
        self.name = Path(encoder.name).resolve().name if Path(encoder.name).is_dir() else encoder.name
        self.device: torch.device = encoder.model.device
        self.batcher = Batcher(LIMITS, batch_size=batch_size)
        self._searches = Batcher({"search": MAX_SEARCHES}, batch_size=1)  # the files of the index have one position
        self._logit_scale = encoder.logit_scale
        self._kept: OrderedDict[str, Future[np.ndarray]] = OrderedDict()
        self._kept_lock = threading.Lock()
        self.dimension = self.embed_texts(["any text"]).shape[1]
        self.embed_images([Image.new("RGB", (64, 64))])  # so that a model that cannot run fails here

    def classify(self, image: Image.Image, labels: Sequence[str], template: str | None = None) -> list[dict[str, Any]]:
        """Classify an image by the similarity of its embedding to those of prompts.

        Args:
            image: Pillow image.
            labels: Labels, see [`prompts_of`].
            template: Prompt with `{}` for each label. Without it, labels of the engine have their own prompts, and
                others have `this is a photo of {}`.

        Returns:
            `label`, `probability` and `similarity` of each label, sorted by probability.

        Raises:
            InputError: If the labels or the template cannot be used.
            BusyError: If too many items wait.
        """
        prompts = prompts_of(labels, template, self.prompts)
        embeds = self.submit_prompts([prompt for texts in prompts.values() for prompt in texts])
        image_embeds = self.embed_images([image])
        return self.ranked(image_embeds, prompts, [embed.result() for embed in embeds])[0]

    def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Return normalized embeddings of shape `(images, dimension)`, float32. Raise `BusyError` if too many wait."""
        pixels = [self.prepare(image) for image in images]
        return self._stacked([embed.result() for embed in self.submit_pixels(pixels)])

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return normalized embeddings of shape `(texts, dimension)`, float32. Raise `BusyError` if too many wait."""
        return self._stacked([embed.result() for embed in self.submit_texts(texts)])

    def search(self, query: str | Image.Image, top_k: int = 10, where: str | None = None) -> list[dict[str, Any]]:
        """Search the index.

        Args:
            query: Text or Pillow image.
            top_k: Number of results.
            where: Condition on the columns, such as `license = 'CC BY' and year > 2020`.

        Returns:
            The rows of [`EmbeddingIndex.search`]: `rank`, `id`, `path`, `similarity` and the columns of the input.

        Raises:
            InputError: If there is no index, `top_k < 1`, or the condition is invalid.
            BusyError: If too many items wait.
        """
        condition = self.condition(where)
        (embed,) = self.embed_texts([query]) if isinstance(query, str) else self.embed_images([query])
        return self.submit_search(embed, top_k, condition).result()

    def saliency(self, image: Image.Image, text: str) -> Image.Image:
        """Return the image in gray, with colors where it is similar to a text.

        The sides of the result are at most 1,024 pixels.

        Raises:
            TypeError: If the model cannot compute gradients, such as exported graphs.
            ValueError: If the image tower is not a ViT with a class token.
            BusyError: If too many items wait.
        """
        if isinstance(self.encoder, ExportedEncoder):
            raise TypeError(f"{self.name} is exported and computes no gradients, which saliency needs.")
        if max(image.size) > MAX_OVERLAY:
            image = to_8_bit(image).convert("RGB")
            image.thumbnail((MAX_OVERLAY, MAX_OVERLAY), Image.Resampling.BICUBIC)

        def run(values: list[tuple[Image.Image, str]]) -> list[torch.Tensor]:
            return [saliency_map(self.encoder.model, self.encoder.processor, *value) for value in values]

        (values,) = self.batcher.submit("saliency", None, run, [(image, text)])
        return draw_overlay(image, values.result())

    def prepare(self, image: Image.Image, name: str = "image") -> torch.Tensor:
        """Return the pixels of an image for the model, of shape `(3, height, width)`.

        Raises:
            ImageError: If the processor of the model cannot use the image. The message has its name.
        """
        try:
            return self.encoder.processor.image_processor([image], return_tensors="pt")["pixel_values"][0]
        except ImageError:
            raise
        except Exception as error:  # processors of other models raise many types for unusual sizes and modes
            raise ImageError(
                f"{name}: the processor of the model cannot use an image of {image.width} x {image.height} pixels and "
                f"mode {image.mode} ({type(error).__name__}). Convert it to RGB, or resize it.",
                "image unreadable",
            ) from error

    def submit_pixels(self, pixels: Sequence[torch.Tensor]) -> list[Future[np.ndarray]]:
        """Return futures of the embeddings of images from [`prepare`]. Raise `BusyError` if too many wait."""
        if not pixels:
            return []
        return self.batcher.submit("image", pixels[0].shape, self._embed_pixels, pixels)

    def submit_texts(self, texts: Sequence[str]) -> list[Future[np.ndarray]]:
        """Return futures of the embeddings of texts. Raise `BusyError` if too many wait."""
        return self.batcher.submit("text", "embed", self._embed_texts, texts)

    def submit_prompts(self, prompts: Sequence[str]) -> list[Future[np.ndarray]]:
        """Return futures of the embeddings of prompts. The last 4,096 are kept for other requests."""
        with self._kept_lock:
            new = [prompt for prompt in dict.fromkeys(prompts) if not self._is_kept(prompt)]
            found = dict(zip(new, self.submit_texts(new), strict=True))
            found |= {prompt: self._kept[prompt] for prompt in prompts if prompt not in found}
            self._kept |= found
            for prompt in found:
                self._kept.move_to_end(prompt)
            characters = sum(map(len, self._kept))
            while len(self._kept) > MAX_PROMPTS or characters > MAX_KEPT_CHARACTERS:
                characters -= len(self._kept.popitem(last=False)[0])
        return [found[prompt] for prompt in prompts]

    def submit_token_counts(self, texts: Sequence[str]) -> list[Future[int]]:
        """Return futures of the numbers of tokens that the model sees of texts. Raise `BusyError` if too many wait."""
        return self.batcher.submit("text", "count", self._count_tokens, texts)

    def ranked(
        self,
        image_embeds: Sequence[np.ndarray] | np.ndarray,
        prompts: Mapping[str, Sequence[str]],
        prompt_embeds: Sequence[np.ndarray],
        top_k: int | None = None,
    ) -> list[list[dict[str, Any]]]:
        """Return the result of [`classify`] of each image from embeddings.

        Args:
            image_embeds: Embeddings of the images.
            prompts: Prompts of each label.
            prompt_embeds: Embeddings of all prompts, in this order.
            top_k: Number of labels in each result. The default is all.
        """
        labels, classes = list(prompts), label_embeds(torch.from_numpy(np.stack(prompt_embeds)), prompts.values())
        results = []
        for embed in image_embeds:
            similarities = classes @ torch.from_numpy(embed)
            probabilities = (similarities * self._logit_scale).softmax(dim=-1)
            order = probabilities.argsort(descending=True, stable=True)[:top_k]
            rows = zip(order.tolist(), probabilities[order].tolist(), similarities[order].tolist(), strict=True)
            results.append([{"label": labels[at], "probability": p, "similarity": s} for at, p, s in rows])
        return results

    def submit_search(self, embed: np.ndarray, top_k: int, where: Any) -> Future[list[dict[str, Any]]]:
        """Return the future of a search of the index for an embedding, see [`search`].

        `where` is a result of [`condition`].

        Raises:
            BusyError: If too many searches wait.
        """
        (found,) = self._searches.submit("search", None, self._search, [(embed, top_k, where)])
        return found

    def close(self) -> None:
        """Cancel the waiting calls, and end the threads."""
        self.batcher.close()
        self._searches.close()

    def condition(self, where: str | None) -> Any:
        """Return a condition as an expression for the index.

        Raises:
            InputError: If there is no index, or the condition is invalid.
        """
        if self.index is None:
            raise InputError("There is no index. Start biomedclip demo with --index.")
        if where is None:
            return None
        try:
            return parse_filter(where, self.index.schema)
        except UsageError as error:
            raise InputError(str(error).replace("--where", "`where`", 1)) from error

    def _search(self, queries: list[tuple[np.ndarray, int, Any]]) -> list[list[dict[str, Any]]]:
        assert self.index is not None
        try:
            return [self.index.search(embed, top_k=top_k, where=where)[0] for embed, top_k, where in queries]
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise InputError(f"`where` cannot be computed: {error}") from error

    def _is_kept(self, prompt: str) -> bool:
        kept = self._kept.get(prompt)
        return kept is not None and not kept.cancelled() and not (kept.done() and kept.exception())

    @torch.no_grad()
    def _embed_pixels(self, pixels: list[torch.Tensor]) -> np.ndarray:
        return self.encoder.embed_pixels(torch.stack(pixels)).numpy()

    def _embed_texts(self, texts: list[str]) -> np.ndarray:
        return text_embeds(self.encoder, texts, self.batcher.batch_size).numpy()

    def _count_tokens(self, texts: list[str]) -> list[int]:
        """Return the numbers of tokens after truncation. A tokenizer cannot be used by two threads at once."""
        model, processor = self.encoder.model, self.encoder.processor
        limit = text_limit(model, processor)
        cut = [text[: limit * CHARACTERS_PER_TOKEN] for text in texts]
        return [len(ids) for ids in processor(text=cut, padding=False, truncation=True, max_length=limit)["input_ids"]]

    def _stacked(self, embeds: list[np.ndarray]) -> np.ndarray:
        return np.stack(embeds) if embeds else np.empty((0, self.dimension), dtype=np.float32)


def load_engine(
    model: str,
    *,
    index: str | Path | None = None,
    prompts: Mapping[str, Sequence[str]] | None = None,
    device: str = "auto",
    precision: str | None = None,
    batch_size: int = BATCH_SIZE,
) -> Engine:
    """Load a model, and an index of embeddings that it computed. Everything is checked before the model is loaded.

    Args:
        model: Folder or Hub id of a dual encoder, or folder of an exported one.
        index: Folder that `biomedclip embed` wrote.
        prompts: Prompts of each label, for requests without labels or without a template.
        device: Device, as in `--device`.
        precision: Precision of the model. The default is `float32`, or that of the export.
        batch_size: Largest number of images or texts that the model sees at once.

    Raises:
        FileNotFoundError: If the model or the index does not exist.
        ImportError: If a package that the model needs is not installed.
        ValueError: If the model is not a dual encoder, another model computed the embeddings, or the labels cannot be
            used.
    """
    precision = check_encoder(model, precision, device=device)
    chosen = choose_device(device)
    if prompts:
        prompts_of(list(prompts), None, prompts)
    opened = EmbeddingIndex(index) if index is not None else None
    encoder = load_encoder(model, precision, device=chosen)
    if opened is not None:
        check_same_model(encoder, opened)
    return Engine(encoder, opened, prompts, batch_size=batch_size)


def read_upload(content: bytes, name: str) -> Image.Image:
    """Decode an uploaded file, with the limits of [`read_image`].

    Args:
        content: The bytes of the file.
        name: Its name, for errors. Folders in it are ignored.

    Raises:
        ImageError: If the file is not an image, is damaged or too large, or is DICOM and pydicom is not installed.
    """
    shown = one_line(re.split(r"[/\\]", name)[-1])[-MAX_NAME:] or "image"
    try:
        image = decode_content(content, shown)
    except ImportError as error:
        raise ImageError(f"{shown}: this server cannot read DICOM ({error})", "image of unknown format") from error
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        # Processors of other models resize the shorter side, which would need memory for the longer one.
        raise ImageError(
            f"{shown}: {image.width} x {image.height} pixels are too elongated. Crop it, so that the longer side "
            f"is at most {MAX_ASPECT_RATIO:,} times the shorter one."
        )
    return image


def prompts_of(
    labels: Sequence[str], template: str | None, listed: Mapping[str, Sequence[str]]
) -> dict[str, Sequence[str]]:
    """Return the prompts of each label.

    Args:
        labels: 2 to 1,000 different labels.
        template: Prompt with `{}` for each label. The default is the listed prompts of a label, and
            `this is a photo of {}` for a label that is not listed.
        listed: Prompts of labels.

    Raises:
        InputError: If there are too few or too many labels, a label is empty or occurs twice, the template has no
            `{}`, or the prompts are too long or too many.
    """
    if template is not None and "{}" not in template:
        raise InputError(f"`template` {template!r} has no {{}} for the label.")
    if not 2 <= len(labels) <= MAX_LABELS:
        bound = "at least two" if len(labels) < 2 else f"at most {MAX_LABELS:,}"
        raise InputError(f"`labels` must have {bound} labels, not {len(labels):,}.")
    if not all(label.strip() for label in labels):
        raise InputError("`labels` contains an empty label.")
    label, count = Counter(labels).most_common(1)[0]
    if count > 1:
        raise InputError(f"`labels` contains {label!r} twice.")
    filled = template or DEFAULT_TEMPLATE
    # Before the prompts are built: many {} multiply the length of a label.
    if (longest := len(filled) + filled.count("{}") * (max(map(len, labels)) - 2)) > MAX_CHARACTERS:
        raise InputError(
            f"`template` with the longest label has {longest:,} characters, and {MAX_CHARACTERS:,} are allowed. "
            "Shorten the template or the label."
        )
    used = listed if template is None else {}
    prompts = {label: used[label] if label in used else [filled.replace("{}", label)] for label in labels}
    if (total := sum(map(len, prompts.values()))) > MAX_PROMPTS:
        raise InputError(f"`labels` has {total:,} prompts, and {MAX_PROMPTS:,} are allowed. Use fewer prompts.")
    return prompts

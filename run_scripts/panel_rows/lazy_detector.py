"""A detector of panels that `biomedclip build` pickles for its workers. Each loads the weights once."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from biomedclip.processing.panels.figure_panels import FigurePanels

from ..cli.progress import no_bars_without_terminal
from .detectors import X_Y_CUT, Detector, check_detector, load_detector, weights_of


@dataclass(frozen=True)
class LazyDetector:
    """The detector that [`load_detector`] returns, loaded at first use.

    Each figure is read alone and by one thread, so that the result does not depend on the workers of a build.

    Attributes:
        name: Folder or Hub id, None for the default detector.
        trust_remote_code: Whether code from the folder is run.
        fingerprint: Identifies the detector and its weights.
        image_types: Names of the types of images that it tells.
    """

    name: str | None
    trust_remote_code: bool
    fingerprint: str
    image_types: tuple[str, ...]

    def prepare(self) -> None:
        """Load the weights, unless this process has already done so.

        Raises:
            ValueError: If the weights differ from those at the start of the build.
        """
        found = fingerprint_of(_load(self.name, self.trust_remote_code))
        if found != self.fingerprint:
            raise ValueError(
                f"--detector {self.name or 'of the package'}: the weights have changed since the build started "
                f"({self.fingerprint}, now {found}). Restore them, or start again with --overwrite."
            )

    def __call__(
        self, images: Sequence[Image.Image], captions: Sequence[str | None] | None = None
    ) -> list[FigurePanels]:
        """Return the panels of each figure."""
        detect = _load(self.name, self.trust_remote_code)
        known = captions or [None] * len(images)
        with _one_thread():
            return [
                figure for image, caption in zip(images, known, strict=True) for figure in detect([image], [caption])
            ]


def load_lazy_detector(name: str | None, *, trust_remote_code: bool = False) -> LazyDetector:
    """Load the detector in a folder or on the Hub, or the default one, and return it for a build."""
    check_detector(name, trust_remote_code=trust_remote_code)
    if name is not None and Path(name).exists():
        name = str(Path(name).absolute())  # tasks may run in other working directories
    with no_bars_without_terminal():
        detector = _load(name, trust_remote_code)
    return LazyDetector(name, trust_remote_code, fingerprint_of(detector), getattr(detector, "image_types", ()))


def fingerprint_of(detector: Detector) -> str:
    """Return a text that identifies a detector: its weights, and the settings that change its results."""
    model: Any = getattr(detector, "model", None)
    if model is None:
        return X_Y_CUT
    names = ("printed_labels", "image_types", "id2label")
    settings = [weights_of(model), *(getattr(model.config, name, None) for name in names)]
    settings.append(getattr(getattr(detector, "image_processor", None), "size", None))
    digest = hashlib.blake2b(json.dumps(settings, default=str).encode(), digest_size=8).hexdigest()
    return f"{model.config.model_type} {digest}"


@lru_cache(maxsize=1)
def _load(name: str | None, trust_remote_code: bool) -> Detector:
    return load_detector(name, threads=1, trust_remote_code=trust_remote_code)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

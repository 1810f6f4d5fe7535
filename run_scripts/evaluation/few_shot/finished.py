"""Keep the finished fits of an evaluation, so that an interrupted one continues.

`fits.jsonl` in the output folder has the settings in its first line, and one line for each fit. The folder `fits` has
the predictions of each fit.
"""

import json
import logging
import zlib
from collections.abc import Collection, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np

from biomedclip.processing.files import replacing, write_text


logger = logging.getLogger(__name__)

FITS = "fits.jsonl"
ARRAYS = "fits"  # folder
Key = tuple[str, int, int]  # method, shots, seed
# RuntimeError: a changed byte can make a member of an archive look encrypted, or compressed by an unknown method.
_DAMAGED = (OSError, EOFError, ValueError, RuntimeError, BadZipFile, zlib.error)


class FinishedFits:
    """The fits in a file. They are added to it when they are finished.

    Args:
        path: The file. It is created if it does not exist.
        settings: Everything that a fit depends on, except its method, shots, seed and images.

    Raises:
        ValueError: If the file has fits with other settings, or is not such a file.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.path = path
        self._fits: dict[Key, dict[str, Any]] = {}
        header = json.dumps(settings, sort_keys=True)
        if path.is_file():
            self._read(json.loads(header))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
        # A line that was interrupted is removed.
        write_text(path, "".join(f"{line}\n" for line in [header, *map(json.dumps, self._fits.values())]))

    def _read(self, settings: Mapping[str, Any]) -> None:
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        try:
            before = json.loads(lines[0])
            differing = sorted(name for name in before | settings if before.get(name) != settings.get(name))
        except (IndexError, ValueError, TypeError) as error:
            raise ValueError(f"{self.path}: not fits of biomedclip evaluate few-shot. Remove the file.") from error
        if differing:
            raise ValueError(
                f"{self.path} has fits with another {' and '.join(differing)}, which would be mixed with those of this "
                "evaluation. Choose another --output-dir, or remove the file."
            )
        for line in lines[1:]:
            try:
                fit = json.loads(line)
                self._fits[fit["method"], fit["shots"], fit["seed"]] = fit
            except (ValueError, KeyError, TypeError):
                continue  # interrupted while it was written

    def get(
        self, method: str, shots: int, seed: int, drawn: str | None, needed: Collection[str] = ()
    ) -> dict[str, Any] | None:
        """Return a finished fit, or None if there is none whose needed arrays can be read.

        Args:
            method: Method of the fit.
            shots: Number of training images of a class.
            seed: Seed of the draw.
            drawn: Hash of the drawn images.
            needed: Names of the arrays that the fit must have. They are read.
        """
        fit = self._fits.get((method, shots, seed))
        if not fit or fit.get("drawn") != drawn or not self._file(fit).is_file():
            return None
        try:
            found = self.arrays(fit, needed)
        except _DAMAGED as error:
            logger.warning(
                f"{self._file(fit)} is damaged, so this fit is computed again: {error or type(error).__name__}"
            )
            return None
        return fit if set(needed) <= set(found) else None

    def arrays(self, fit: Mapping[str, Any], names: Collection[str]) -> dict[str, np.ndarray]:
        """Return those of the given arrays that a fit has. Damaged files raise one of several exceptions."""
        with ZipFile(self._file(fit)) as archive:
            stored = {name: f"{name}.npy" for name in names}
            files = {name: archive.read(file) for name, file in stored.items() if file in archive.namelist()}
        # The bytes have been compared with their checksums.
        return {name: np.load(BytesIO(content), allow_pickle=False) for name, content in files.items()}

    def add(self, fit: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Add a finished fit, with its `method`, `shots`, `seed` and `drawn`, and its predictions."""
        file = self._file(fit)
        file.parent.mkdir(exist_ok=True)
        with replacing(file) as partial, partial.open("xb") as stream:
            np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
        self._fits[fit["method"], fit["shots"], fit["seed"]] = fit
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(fit) + "\n")

    def _file(self, fit: Mapping[str, Any]) -> Path:
        # The hash is part of the name, so that the predictions are those of these training images.
        return self.path.with_name(ARRAYS) / f"{fit['method']}-{fit['shots']}-{fit['seed']}-{fit['drawn']}.npz"

"""Keep the finished fits of an evaluation, so that an interrupted one continues.

`fits.jsonl` in the output folder has the settings in its first line, and one line for each fit.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from biomedclip.processing.files import write_text


FITS = "fits.jsonl"
Key = tuple[str, int, int]  # method, shots, seed


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
        lines = self.path.read_text(encoding="utf-8").splitlines()
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

    def get(self, method: str, shots: int, seed: int, drawn: str | None) -> dict[str, Any] | None:
        """Return a finished fit on the images with the hash `drawn`, or None."""
        fit = self._fits.get((method, shots, seed))
        return fit if fit and fit.get("drawn") == drawn else None

    def add(self, fit: dict[str, Any]) -> None:
        """Add a finished fit, with its `method`, `shots`, `seed` and `drawn`."""
        self._fits[fit["method"], fit["shots"], fit["seed"]] = fit
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(fit) + "\n")

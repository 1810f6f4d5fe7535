"""Split long work into numbered parts on disk. Processes share the parts, and an interrupted run reuses them.

A part has a checksum of its tensors, its note, its number and the key of the work. If the checksum differs, the part is
damaged or belongs to other work, and it is computed again.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

from biomedclip.processing.files import replacing

from ..cli.permissions import apply_umask


logger = logging.getLogger(__name__)

Part = tuple[dict[str, torch.Tensor], Any]


class Parts:
    """The parts of one piece of work. Each is a safetensors file with a note.

    Each key has its own subfolder. A key contains everything that the result depends on, and is written to `key.json`.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], count: int):
        text = json.dumps(key, sort_keys=True)
        self._key = text
        self.folder = folder / hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        self.count = count
        self.folder.mkdir(parents=True, exist_ok=True)
        if PartialState().is_main_process:
            (self.folder / "key.json").write_text(json.dumps(key, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def complete(self, work: Callable[[int], Part], description: str) -> None:
        """Compute the parts that are missing or damaged. Each process computes a share of them.

        `work` receives the number of a part and returns its tensors and a note for JSON. Raise `FileNotFoundError` if
        this process cannot see the parts of other processes.
        """
        state = PartialState()
        missing = [number for number in range(self.count) if self._load(number) is None]
        damaged = [self._path(number) for number in missing if self._path(number).exists()]
        if damaged and state.is_main_process:
            logger.warning(
                "%s%s: damaged, or not written by this version for this work. It is computed again.",
                damaged[0],
                f" and {len(damaged) - 1} other(s)" if len(damaged) > 1 else "",
            )
        state.wait_for_everyone()  # all processes list the missing parts before the first one is written
        mine = missing[state.process_index :: state.num_processes]
        # With several processes, the bar shows the share of the first one.
        done = self.count - len(missing) if state.num_processes == 1 else 0
        with tqdm(
            total=done + len(mine), initial=done, desc=description, unit="part", disable=not state.is_main_process
        ) as bar:
            for number in mine:
                self._write(number, *work(number))
                bar.update()
        state.wait_for_everyone()
        unseen = [number for number in missing if not self._path(number).is_file()]
        if unseen:
            raise FileNotFoundError(
                f"{self._path(unseen[0])} was written by another process and is missing here. Processes on several "
                "machines need a shared folder: pass it as --features-dir."
            )

    def read(self, number: int) -> Part:
        """Return the tensors and the note of a finished part. Raise `OSError` if it is missing or damaged."""
        part = self._load(number)
        if part is None:
            raise OSError(f"{self._path(number)}: missing or damaged. Run the same command again.")
        return part

    def _load(self, number: int) -> Part | None:
        """Return the tensors and the note of a part, or None if it is missing or its checksum differs."""
        try:
            with safe_open(self._path(number), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            if metadata["checksum"] == self._checksum(number, tensors, metadata["note"]):
                return tensors, json.loads(metadata["note"])
        except (OSError, SafetensorError, KeyError, ValueError):
            pass
        return None

    def _checksum(self, number: int, tensors: Mapping[str, torch.Tensor], note: str) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for text in (self._key, str(number), note):
            digest.update(f"{len(text)} {text}".encode())
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def _write(self, number: int, tensors: dict[str, torch.Tensor], note: Any) -> None:
        path = self._path(number)
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        metadata = {"note": json.dumps(note)}
        metadata["checksum"] = self._checksum(number, tensors, metadata["note"])
        with replacing(path) as partial:
            save_file(tensors, partial, metadata)
            apply_umask(partial)

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:05}.safetensors"

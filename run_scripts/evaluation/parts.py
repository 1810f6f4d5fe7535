"""Long work in numbered parts on disk, which processes share, and which goes on where it was cut off."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm


Part = tuple[dict[str, torch.Tensor], Any]


class Parts:
    """
    The parts of one piece of work, each a safetensors file with a note.

    Args:
        folder: Where pieces of work lie; this one gets a folder of its own in it.
        key: All that the result depends on: another key is another folder. It is written beside the parts.
        count: Number of parts.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], count: int):
        text = json.dumps(key, sort_keys=True)
        self.folder = folder / hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        self.count = count
        self.folder.mkdir(parents=True, exist_ok=True)
        if PartialState().is_main_process:
            (self.folder / "key.json").write_text(json.dumps(key, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def complete(self, work: Callable[[int], Part], description: str) -> None:
        """
        Does the parts that are missing or damaged; each process takes its share of them.

        Args:
            work: Takes the number of a part and gives its tensors, and a note that JSON can hold.
            description: What the progress bar says.

        Raises:
            FileNotFoundError: Parts of other processes are not seen here.
        """
        state = PartialState()
        missing = [number for number in range(self.count) if not self._is_whole(number)]
        state.wait_for_everyone()  # all have looked before the first writes: they share the same list
        mine = missing[state.process_index :: state.num_processes]
        # A single process knows how much was done before; of several, each bar is about its own share.
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
                f"{self._path(unseen[0])}, which another process has written, is not seen here. Processes on several "
                "machines need a folder that all of them share: name one with --features-dir."
            )

    def read(self, number: int) -> Part:
        """Tensors and note of a part that has been done."""
        with safe_open(self._path(number), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["note"])

    def _is_whole(self, number: int) -> bool:
        try:
            # Opening compares the file's length with what its header says.
            with safe_open(self._path(number), framework="pt") as file:
                return "note" in (file.metadata() or {})
        except (OSError, SafetensorError):
            return False

    def _write(self, number: int, tensors: dict[str, torch.Tensor], note: Any) -> None:
        path = self._path(number)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, {"note": json.dumps(note)})
        os.replace(partial, path)

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:05}.safetensors"

"""Permissions of files that are written through temporary files.

safetensors (0.8) and `tempfile` make files that their owner alone may read, mode 0600, and the umask does not count.
Others of a group could then not load a model that stands in a shared folder.
"""

import os
import stat
from pathlib import Path
from typing import Any

from transformers import TrainerCallback


_OF_THE_OWNER = 0o600
# Code is copied with the permissions that it has in the installed package.
_WRITTEN = ("*.safetensors", "*_biomedclip.py")
_UMASK = os.umask(0)  # the only way to ask for it is to set it
os.umask(_UMASK)


def apply_umask(path: Path) -> None:
    """
    Give files with mode 0600 the permissions that a plain `open` would have given them.

    Args:
        path: A file; or a folder, of which the weights and the code of a saved model count, not those in folders below.
            Files with other permissions and links stay as they are.
    """
    files = [file for pattern in _WRITTEN for file in sorted(path.glob(pattern))] if path.is_dir() else [path]
    for file in files:
        kind = file.lstat().st_mode
        if stat.S_ISREG(kind) and stat.S_IMODE(kind) == _OF_THE_OWNER:
            file.chmod(0o666 & ~_UMASK)


class UmaskOnCheckpoints(TrainerCallback):
    """Applies the umask to each checkpoint of a training once it is written."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.should_save:
            apply_umask(Path(args.output_dir) / f"checkpoint-{state.global_step}")

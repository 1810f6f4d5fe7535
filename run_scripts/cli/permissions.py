"""Set the permissions of files that are written through temporary files.

safetensors (0.8) and `tempfile` ignore the umask and create files that only the owner can read (mode 0600). Other
members of a group could then not load a model from a shared folder.
"""

import os
import stat
from pathlib import Path
from typing import Any

from transformers import TrainerCallback


_OF_THE_OWNER = 0o600
# Code files are copied with their permissions in the installed package.
_WRITTEN = ("*.safetensors", "*_biomedclip.py")
_UMASK = os.umask(0)  # the umask can only be read by setting it
os.umask(_UMASK)


def apply_umask(path: Path) -> None:
    """Set the permissions of a file with mode 0600 to those that `open` would set.

    In a folder, only the weights and the code files are changed. Subfolders and links are not.
    """
    files = [file for pattern in _WRITTEN for file in sorted(path.glob(pattern))] if path.is_dir() else [path]
    for file in files:
        kind = file.lstat().st_mode
        if stat.S_ISREG(kind) and stat.S_IMODE(kind) == _OF_THE_OWNER:
            file.chmod(0o666 & ~_UMASK)


class UmaskOnCheckpoints(TrainerCallback):
    """Apply the umask to each training checkpoint after it is written."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the permissions of the checkpoint that was written."""
        if args.should_save:
            apply_umask(Path(args.output_dir) / f"checkpoint-{state.global_step}")

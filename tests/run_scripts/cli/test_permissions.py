"""Files of weights have the permissions that the umask gives, though safetensors writes them for their owner alone."""

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from biomedclip.run_scripts.cli import permissions
from biomedclip.run_scripts.cli.permissions import UmaskOnCheckpoints, apply_umask
from biomedclip.run_scripts.evaluation.parts import Parts


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def plain_mode(folder: Path) -> int:
    """What a plain `open` gives."""
    (folder / "plain").write_text("")
    return mode(folder / "plain")


def test_the_umask_applies_only_to_weights_and_code_of_a_saved_model(tmp_path):
    folder = tmp_path / "model"
    (folder / "below").mkdir(parents=True)
    names = ("model.safetensors", "modeling_biomedclip.py", "key.txt", "below/model.safetensors", "open.safetensors")
    for name in names:
        (folder / name).write_bytes(b"")
        (folder / name).chmod(0o600)
    (folder / "open.safetensors").chmod(0o640)
    (tmp_path / "outside.safetensors").write_bytes(b"")
    (tmp_path / "outside.safetensors").chmod(0o600)
    (folder / "link.safetensors").symlink_to("../outside.safetensors")
    apply_umask(folder)
    expected = plain_mode(folder)
    assert [mode(folder / name) for name in names] == [expected, expected, 0o600, 0o600, 0o640]
    assert mode(tmp_path / "outside.safetensors") == 0o600


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_the_umask_decides(tmp_path, monkeypatch, umask):
    monkeypatch.setattr(permissions, "_UMASK", umask)
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    apply_umask(tmp_path / "a.safetensors")
    assert mode(tmp_path / "a.safetensors") == 0o666 & ~umask


def test_a_checkpoint_is_readable_as_soon_as_it_is_written(tmp_path):
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    save_file({"a": torch.zeros(2)}, folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o600)

    class Arguments:
        output_dir, should_save = str(tmp_path), True

    class State:
        global_step = 3

    UmaskOnCheckpoints().on_save(Arguments, State, None)
    assert mode(folder / "model.safetensors") == plain_mode(tmp_path)


def test_features_on_disk_are_readable(tmp_path):
    Parts(tmp_path, {"a": 1}, 1).complete(lambda number: ({"x": torch.zeros(2)}, None), "Features")
    (part,) = tmp_path.rglob("part-*.safetensors")
    assert mode(part) == plain_mode(tmp_path)


def test_the_umask_of_the_process_is_as_before():
    before = os.umask(0)
    os.umask(before)
    assert before == permissions._UMASK

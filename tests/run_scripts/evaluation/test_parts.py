"""Work that is kept on disk in parts. A damaged part is computed again."""

import logging
import pickle
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from biomedclip.run_scripts.evaluation.parts import Parts


def compute(number):
    generator = torch.Generator().manual_seed(number)
    return {"embeds": torch.randn(6, 4, generator=generator), "rows": torch.arange(6)}, [{"name": str(number)}]


@pytest.fixture
def done(tmp_path):
    """Three parts on disk."""
    parts = Parts(tmp_path, {"weights": "abc"}, 3)
    parts.complete(compute, "Parts")
    return parts


def path_of(parts, number=1):
    return parts.folder / f"part-{number:05}.safetensors"


def complete_again(tmp_path, weights="abc"):
    """Return the numbers of the parts that were computed again, and whether all parts are right."""
    computed = []
    parts = Parts(tmp_path, {"weights": weights}, 3)
    parts.complete(lambda number: computed.append(number) or compute(number), "Parts")
    return computed, all(is_right(parts.read(number), number) for number in range(3))


def is_right(part, number):
    tensors, note = compute(number)
    return part[1] == note and all(part[0][name].equal(tensor) for name, tensor in tensors.items())


def test_finished_parts_are_not_computed_again(done, tmp_path):
    assert complete_again(tmp_path) == ([], True)


def replace_values(path):
    tensors = {name: tensor + 1 for name, tensor in load_file(path).items()}
    save_file(tensors, path, {"note": "[]", "checksum": "0" * 32})


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:20]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not a safetensors file at all"),
        lambda path: path.write_bytes(pickle.dumps(print)),
        lambda path: save_file(load_file(path), path, {"note": "[]"}),
        replace_values,
        lambda path: shutil.copy(path.with_name("part-00002.safetensors"), path),
        lambda path: shutil.copy(path.with_name("part-00000.safetensors"), path),
    ],
)
def test_a_damaged_part_is_computed_again_with_a_warning(done, tmp_path, caplog, damage):
    damage(path_of(done))
    with caplog.at_level(logging.WARNING), pytest.raises(OSError, match=r"part-00001\.safetensors: missing or damaged"):
        done.read(1)
    assert complete_again(tmp_path) == ([1], True)
    assert "part-00001.safetensors: damaged" in caplog.text


def test_parts_of_other_work_are_computed_again(done, tmp_path):
    other = Parts(tmp_path, {"weights": "other"}, 3)
    for number in range(3):
        shutil.copy(path_of(done, number), path_of(other, number))
    assert complete_again(tmp_path, "other") == ([0, 1, 2], True)


def test_a_flipped_bit_never_changes_the_values_that_are_read(done):
    path = path_of(done)
    intact, generator = path.read_bytes(), random.Random(0)
    for _ in range(200):
        content = bytearray(intact)
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(content)
        part = done._load(1)
        assert part is None or is_right(part, 1)

"""Work that is kept on disk in parts: a part that is not as it was written is computed again."""

import logging
import pickle
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from biomedclip.run_scripts.evaluation.parts import Parts


def some_part(number):
    generator = torch.Generator().manual_seed(number)
    return {"embeds": torch.randn(6, 4, generator=generator), "rows": torch.arange(6)}, [{"name": str(number)}]


@pytest.fixture
def done(tmp_path):
    """Three parts on disk."""
    parts = Parts(tmp_path, {"weights": "abc"}, 3)
    parts.complete(some_part, "Parts")
    return parts


def path_of(parts, number=1):
    return parts.folder / f"part-{number:05}.safetensors"


def completed(tmp_path, key=None):
    """Numbers of the parts that are computed now, and all parts."""
    computed = []

    def work(number):
        computed.append(number)
        return some_part(number)

    parts = Parts(tmp_path, key or {"weights": "abc"}, 3)
    parts.complete(work, "Parts")
    return computed, [parts.read(number) for number in range(3)]


def are_right(parts):
    return all(
        note == some_part(number)[1] and all(tensors[name].equal(value) for name, value in some_part(number)[0].items())
        for number, (tensors, note) in enumerate(parts)
    )


def test_parts_are_not_computed_twice(done, tmp_path):
    computed, parts = completed(tmp_path)
    assert computed == [] and are_right(parts)


def without_checksum(path):
    tensors = load_file(path)
    save_file(tensors, path, {"note": "[]"})


def other_values(path):
    tensors = load_file(path)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, path, {"note": "[]", "checksum": "0" * 32})


def pickled(path):
    path.write_bytes(pickle.dumps(print))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:20]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not a safetensors file at all"),
        pickled,
        without_checksum,
        other_values,
        lambda path: shutil.copy(path.with_name("part-00002.safetensors"), path),
        lambda path: shutil.copy(path.with_name("part-00000.safetensors"), path),
    ],
)
def test_a_damaged_or_foreign_part_is_computed_again_with_a_warning(done, tmp_path, caplog, damage):
    damage(path_of(done))
    with caplog.at_level(logging.WARNING), pytest.raises(OSError, match=r"part-00001\.safetensors: missing or damaged"):
        done.read(1)
    computed, parts = completed(tmp_path)
    assert computed == [1] and are_right(parts)
    assert "part-00001.safetensors: damaged" in caplog.text


def test_a_part_of_another_run_is_computed_again(done, tmp_path):
    other = Parts(tmp_path, {"weights": "other"}, 3)
    for number in range(3):
        shutil.copy(path_of(done, number), path_of(other, number))
    computed, parts = completed(tmp_path, {"weights": "other"})
    assert computed == [0, 1, 2] and are_right(parts)


def test_no_flipped_bit_of_a_part_changes_values(done, tmp_path):
    path = path_of(done)
    intact = path.read_bytes()
    generator = random.Random(0)
    for _ in range(200):
        content = bytearray(intact)
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(content)
        part = done._load(1)
        assert part is None or are_right([some_part(0), part, some_part(2)])

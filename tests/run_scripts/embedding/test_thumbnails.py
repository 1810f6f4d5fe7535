"""Thumbnails of search results show the images that the user named."""

import io

import numpy as np
from PIL import Image

from biomedclip.run_scripts.embedding.thumbnails import Thumbnails


def test_the_ids_of_a_dataset_are_read_once_for_all_searches(tmp_path, monkeypatch):
    for number in range(3):
        Image.new("L", (8, 8), 80 * number).save(tmp_path / f"{number}.png")
    thumbnails = Thumbnails([str(tmp_path)], [])
    ids = list(thumbnails._inputs.ids())
    reads = []
    monkeypatch.setattr(thumbnails._inputs, "ids", lambda: reads.append(1) or iter(ids))
    for order in ([2, 0], [1, 2]):
        found = thumbnails.of_rows([{"id": ids[number]} for number in order])
        shades = [np.asarray(Image.open(io.BytesIO(image))).mean() for image in found]
        np.testing.assert_allclose(shades, [80 * number for number in order], atol=2)
    assert len(reads) == 1

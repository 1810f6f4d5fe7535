"""From rows to a batch."""

import io
import logging

import numpy as np
import pytest
import torch
from mirror_writer import png_bytes
from PIL import Image
from torch.utils.data import DataLoader

from processing import ContrastiveCollator
from processing.collator import random_resized_crop


def rows(count: int) -> list[dict]:
    return [
        {"pair_id": f"p{n}", "image": {"bytes": png_bytes(n), "path": None}, "caption": "caption " * (n + 1)}
        for n in range(count)
    ]


def test_a_batch_is_padded_to_its_longest_caption(small_processor):
    batch = ContrastiveCollator(small_processor)(rows(3))
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values"}
    lengths = [len(small_processor.tokenizer(row["caption"])["input_ids"]) for row in rows(3)]
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths
    assert batch["input_ids"].shape == (3, max(lengths))
    assert batch["pixel_values"].shape == (3, 3, 32, 32)


def test_long_captions_are_cut(small_processor):
    long = [{"image": Image.new("RGB", (40, 40)), "caption": "caption " * 300}]
    assert ContrastiveCollator(small_processor)(long)["input_ids"].shape == (1, 64)
    assert ContrastiveCollator(small_processor, max_length=10)(long)["input_ids"].shape == (1, 10)


def test_evaluation_gives_the_pixels_of_the_processor(small_processor):
    image = Image.open(io.BytesIO(png_bytes(5)))
    batch = ContrastiveCollator(small_processor)([{"image": image, "caption": "a"}])
    assert torch.equal(
        batch["pixel_values"], small_processor.image_processor(image, return_tensors="pt")["pixel_values"]
    )


def test_a_crop_depends_on_seed_pair_and_epoch_alone(small_processor):
    def pixels(batch_rows, **options):
        return ContrastiveCollator(small_processor, training=True, **options)(batch_rows)["pixel_values"]

    first = pixels(rows(4))
    assert torch.equal(first, pixels(rows(4)))
    assert torch.equal(first[2], pixels(rows(4)[2:])[0]), "whatever the place in the batch"
    assert not torch.equal(first, pixels(rows(4), seed=1))
    assert not torch.equal(first, pixels([{**row, "epoch": 1} for row in rows(4)]))


def test_the_epoch_can_be_set_for_rows_without_one(small_processor):
    collator = ContrastiveCollator(small_processor, training=True)
    expected = collator([{**row, "epoch": 3} for row in rows(2)])["pixel_values"]
    collator.set_epoch(3)
    assert torch.equal(collator(rows(2))["pixel_values"], expected)


def test_crops_keep_to_the_share_of_the_area_and_to_the_image():
    # A picture whose pixels tell their place: column in red, row in green.
    columns, lines = np.meshgrid(np.arange(200), np.arange(150))
    picture = Image.fromarray(np.stack([columns, lines, 0 * lines], axis=-1).astype(np.uint8))
    generator = np.random.default_rng(0)
    for _ in range(50):
        crop = np.asarray(random_resized_crop(picture, (150, 200), generator, (0.5, 0.6), (0.9, 1.1))).astype(int)
        width = np.ptp(crop[..., 0]) + 1
        height = np.ptp(crop[..., 1]) + 1
        # Two pixels of tolerance a side: a bicubic filter overshoots or flattens at the border.
        assert 0.45 < width * height / (200 * 150) < 0.65


def test_an_image_too_narrow_for_any_crop_gives_its_middle():
    crop = random_resized_crop(Image.new("L", (1, 500)), (8, 8), np.random.default_rng(0), (0.9, 1.0), (3 / 4, 4 / 3))
    assert crop.size == (8, 8) and crop.mode == "RGB"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": {"bytes": png_bytes(1)[:200], "path": None}}, "'p1' cannot be used: .*truncated"),
        ({"image": None, "caption": "a"}, "'p1'"),
        ({"caption": "  "}, "'p1' cannot be used: its caption is empty"),
        ({"caption": None}, "'p1' cannot be used: its caption is empty"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(small_processor, change, message):
    broken = rows(3)
    broken[1] |= change
    with pytest.raises(ValueError, match=message):
        ContrastiveCollator(small_processor)(broken)


def test_a_missing_column_is_named(small_processor):
    with pytest.raises(ValueError, match="no 'caption'; it has .'image', 'text'."):
        ContrastiveCollator(small_processor)([{"image": Image.new("RGB", (9, 9)), "text": "a"}])


def test_a_substitute_keeps_the_batch_full_and_is_counted(small_processor, caplog):
    broken = rows(4)
    broken[2]["image"] = {"bytes": b"nothing", "path": None}
    collator = ContrastiveCollator(small_processor, on_error="substitute")
    with caplog.at_level(logging.WARNING):
        batch = collator(broken)
    assert collator.substituted_rows == 1 and "'p2'" in caplog.text
    others = [0, 1, 3]
    assert any(torch.equal(batch["pixel_values"][2], batch["pixel_values"][other]) for other in others)
    assert torch.equal(batch["pixel_values"], collator(broken)["pixel_values"]), "drawn by seed"
    with pytest.raises(ValueError, match="None of the 1 rows"):
        collator(broken[2:3])


def test_substitutes_are_counted_across_workers(small_processor):
    broken = rows(8)
    for row in broken[::4]:
        row["caption"] = ""
    collator = ContrastiveCollator(small_processor, on_error="substitute")
    list(DataLoader(broken, batch_size=4, num_workers=2, collate_fn=collator))
    assert collator.substituted_rows == 2


def test_an_unknown_way_out_is_refused(small_processor):
    with pytest.raises(ValueError, match="'raise' or 'substitute'"):
        ContrastiveCollator(small_processor, on_error="ignore")

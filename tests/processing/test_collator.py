"""From rows to a batch."""

import io
import logging
import time

import numpy as np
import pytest
import torch
from helpers.mirror_writer import png_bytes
from PIL import Image
from torch.utils.data import DataLoader

from biomedclip.processing import ContrastiveCollator
from biomedclip.processing.images.cropping import fast_resized_crop, random_box, reduce_jpeg, resized_crop
from biomedclip.processing.images.reading import decode_image, open_image


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
        crop = np.asarray(
            resized_crop(picture, random_box(picture.size, generator, (0.5, 0.6), (0.9, 1.1)), (150, 200))
        ).astype(int)
        width = np.ptp(crop[..., 0]) + 1
        height = np.ptp(crop[..., 1]) + 1
        # Two pixels of tolerance a side: a bicubic filter overshoots or flattens at the border.
        assert 0.45 < width * height / (200 * 150) < 0.65


def test_an_image_too_narrow_for_any_crop_gives_its_middle():
    crop = resized_crop(Image.new("L", (1, 500)), random_box((1, 500), np.random.default_rng(0)), (8, 8))
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


def file_of(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **{"format": "JPEG", "quality": 95, "subsampling": 0} | options)
    return buffer.getvalue()


def picture_of_places(width: int, height: int) -> Image.Image:
    """Red grows from left to right, green from top to bottom: 0 to 255."""
    columns, lines = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([columns, lines, 0 * lines], axis=-1).round().astype(np.uint8))


def training_pixels(processor, content, **options) -> torch.Tensor:
    collator = ContrastiveCollator(processor, training=True, **options)
    return collator([{"pair_id": "p", "image": content, "caption": "a"}])["pixel_values"]


@pytest.mark.parametrize("box", [(0, 0, 640, 480), (31, 17, 607, 471), (3, 5, 67, 69), (3, 5, 66, 69), (0, 0, 20, 480)])
def test_a_jpeg_is_decoded_no_smaller_than_its_crop_needs_and_no_larger(box):
    image, _ = open_image(file_of(picture_of_places(640, 480)))
    reduction = reduce_jpeg(image, box, (32, 32))
    image.load()
    assert image.size == (640 / reduction, 480 / reduction)
    shortest = min(box[2] - box[0], box[3] - box[1])
    assert reduction == 1 or shortest / reduction >= 32
    assert reduction == 8 or shortest / (2 * reduction) < 32


@pytest.mark.parametrize("size", [(640, 480), (643, 477), (301, 1001)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_fast_decoded_crop_lies_where_the_exact_one_does(size, mode):
    content = file_of(picture_of_places(*size).convert(mode))
    for seed in range(5):
        box = random_box(size, np.random.default_rng(seed), (0.3, 0.6), (3 / 4, 4 / 3))
        exact = resized_crop(Image.open(io.BytesIO(content)), box, (64, 64))
        image, name = open_image(content)
        reduction = reduce_jpeg(image, box, (64, 64))
        fast = fast_resized_crop(decode_image(image, name), box, (64, 64), reduction)
        assert reduction > 1 and fast.mode == "RGB" and fast.size == (64, 64)
        # A step between two pixels of the result is about two levels; rounding alone makes half a level.
        assert np.abs(np.asarray(exact).astype(int) - np.asarray(fast)).mean() < 0.5


def test_fast_decoding_changes_pixels_of_real_figures_by_about_one_level(shared_data):
    reduced, whole = [], []
    for seed, path in enumerate(sorted((shared_data / "pmc_mirror").glob("PMC*/*.jpg"))[::8]):
        image, name = open_image(path)
        box = random_box(image.size, np.random.default_rng(seed), (0.9, 1.0), (3 / 4, 4 / 3))
        exact = resized_crop(decode_image(*open_image(path)), box, (224, 224))
        reduction = reduce_jpeg(image, box, (224, 224))
        fast = fast_resized_crop(decode_image(image, name), box, (224, 224), reduction)
        difference = np.abs(np.asarray(exact).astype(int) - np.asarray(fast)).mean()
        (reduced if reduction > 1 else whole).append(difference)
    # Over all 475 figures, 285 of which are reduced: 0.96 in the mean and 4.5 at most, and 0.002 of the others.
    assert len(reduced) > 20 and len(whole) > 10
    assert 0 < np.mean(reduced) < 1.5 and max(reduced) < 6
    assert max(whole) < 0.1


def test_fast_decoding_is_asked_for_and_for_training_jpegs_alone(small_processor):
    picture = picture_of_places(300, 200)
    jpeg, png = file_of(picture), file_of(picture, format="PNG")
    assert not torch.equal(
        training_pixels(small_processor, jpeg, fast_decode=True), training_pixels(small_processor, jpeg)
    )
    assert torch.equal(training_pixels(small_processor, png, fast_decode=True), training_pixels(small_processor, png))
    row = {"image": jpeg, "caption": "a"}
    exact, fast = (ContrastiveCollator(small_processor, fast_decode=fast)([row]) for fast in (False, True))
    assert torch.equal(exact["pixel_values"], fast["pixel_values"]), "evaluation"


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_too_small_to_be_reduced_keeps_its_pixels_within_two_levels(small_processor, mode):
    noise = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    content = file_of(Image.fromarray(noise).convert(mode))
    exact, fast = (training_pixels(small_processor, content, fast_decode=fast) for fast in (False, True))
    std = small_processor.image_processor.image_std
    levels = (exact - fast).abs() * 255 * torch.tensor(std)[:, None, None]
    # Both round twice, after the rows and after the columns.
    assert levels.max() < 2.5 and levels.mean() < 0.1


def test_fast_decoding_leaves_a_pillow_image_whole(small_processor):
    image = Image.open(io.BytesIO(file_of(picture_of_places(300, 200))))
    exact = training_pixels(small_processor, file_of(picture_of_places(300, 200)))
    assert torch.equal(training_pixels(small_processor, image, fast_decode=True), exact)
    assert image.size == (300, 200)


def test_a_damaged_jpeg_is_refused_when_decoded_fast_too(small_processor):
    damaged = file_of(picture_of_places(300, 200))[:2000]
    with pytest.raises(ValueError, match="'p' cannot be used: image: damaged or truncated"):
        training_pixels(small_processor, damaged, fast_decode=True)


def test_the_collator_knows_how_many_rows_it_collates_in_a_second_over_all_workers(small_processor):
    collator = ContrastiveCollator(small_processor)
    assert collator.rows_per_second is None
    started = time.perf_counter()
    collator(rows(8))
    assert 8 / (time.perf_counter() - started) <= collator.rows_per_second < 1e6
    collator = ContrastiveCollator(small_processor)
    list(DataLoader(rows(8), batch_size=4, num_workers=2, collate_fn=collator))
    assert collator.rows_per_second > 0

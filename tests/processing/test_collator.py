"""Collators: rows to a batch, crops, substitutes, and fast decoding."""

import io
import time

import numpy as np
import pytest
import torch
from helpers.gradients import encode, position_gradient
from helpers.mirror_writer import png_bytes
from PIL import Image
from torch.utils.data import DataLoader

from biomedclip.processing import ContrastiveCollator, LabelCollator, VisualQuestionCollator
from biomedclip.processing.collator import IGNORED_LABEL, UNKNOWN_ANSWER


ANSWERS = {"yes": 0, "no": 1, "3": 2}
LABELS = {"chart": 0, "lung": 1}


def rows(count: int) -> list[dict]:
    return [
        {"pair_id": f"p{n}", "image": {"bytes": png_bytes(n), "path": None}, "caption": "caption " * (n + 1)}
        for n in range(count)
    ]


def questions(count: int) -> list[dict]:
    answers = ["Yes", "no.", 3]
    return [
        {"name": f"p{n}", "image": png_bytes(n), "question": "chart " * (n + 1), "answer": answers[n % 3]}
        for n in range(count)
    ]


def labeled(count: int) -> list[dict]:
    return [{"name": f"p{n}", "image": png_bytes(n), "label": "lung" if n % 2 == 0 else "chart"} for n in range(count)]


def test_a_batch_is_padded_to_its_longest_caption(small_processor):
    batch = ContrastiveCollator(small_processor)(rows(3))
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values"}
    lengths = [len(small_processor.tokenizer(row["caption"])["input_ids"]) for row in rows(3)]
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths
    assert batch["input_ids"].shape == (3, max(lengths))
    assert batch["pixel_values"].shape == (3, 3, 32, 32)


def test_a_batch_of_questions_has_tokens_pixels_and_the_indices_of_answers(small_processor):
    batch = VisualQuestionCollator(small_processor, ANSWERS)(questions(4))
    inputs = small_processor(text=[row["question"] for row in questions(4)], return_tensors="pt")
    assert torch.equal(batch["input_ids"], inputs["input_ids"])
    assert torch.equal(batch["attention_mask"], inputs["attention_mask"])
    assert batch["pixel_values"].shape == (4, 3, 32, 32)
    assert batch["labels"].tolist() == [0, 1, 2, 0]


def test_long_texts_are_truncated(small_processor):
    long = [{"image": Image.new("RGB", (40, 40)), "caption": "caption " * 300}]
    assert ContrastiveCollator(small_processor)(long)["input_ids"].shape == (1, 64)
    assert ContrastiveCollator(small_processor, max_length=10)(long)["input_ids"].shape == (1, 10)
    batch = VisualQuestionCollator(small_processor, ANSWERS, max_length=3)(questions(4))
    assert batch["input_ids"].shape == (4, 3)


def test_evaluation_uses_the_pixels_of_the_processor(small_processor):
    image = Image.open(io.BytesIO(png_bytes(5)))
    pixels = ContrastiveCollator(small_processor)([{"image": image, "caption": "a"}])["pixel_values"]
    assert torch.equal(pixels, small_processor.image_processor(image, return_tensors="pt")["pixel_values"])


def test_a_crop_depends_only_on_seed_name_and_epoch(small_processor):
    def pixels(batch_rows, epoch=0, **options):
        collator = ContrastiveCollator(small_processor, training=True, **options)
        collator.set_epoch(epoch)
        return collator(batch_rows)["pixel_values"]

    first = pixels(rows(4))
    assert torch.equal(first, pixels(rows(4)))
    assert torch.equal(first[2], pixels(rows(4)[2:])[0]), "and not on the position in the batch"
    assert not torch.equal(first, pixels(rows(4), seed=1))
    later = pixels([{**row, "epoch": 3} for row in rows(4)])
    assert not torch.equal(first, later) and torch.equal(pixels(rows(4), epoch=3), later)
    asked = VisualQuestionCollator(small_processor, ANSWERS, training=True)(questions(4))
    assert torch.equal(asked["pixel_values"], first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": {"bytes": png_bytes(1)[:200], "path": None}}, ".*truncated"),
        ({"image": None, "caption": "a"}, "there is no image"),
        ({"caption": "  "}, "its caption is empty"),
        ({"caption": None}, "its caption is empty"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(small_processor, change, message):
    broken = rows(3)
    broken[1] |= change
    with pytest.raises(ValueError, match=f"'p1' cannot be used: {message}"):
        ContrastiveCollator(small_processor)(broken)


def test_a_question_that_cannot_be_used_is_named(small_processor):
    collator = VisualQuestionCollator(small_processor, ANSWERS)
    with pytest.raises(ValueError, match="'p0' cannot be used: its question is empty"):
        collator([questions(1)[0] | {"question": " "}])
    with pytest.raises(ValueError, match="'p0' has no column 'answer'"):
        collator([{"name": "p0", "image": png_bytes(0), "question": "a"}])
    with pytest.raises(ValueError, match="no column 'caption'. Its columns are .'image', 'text'."):
        ContrastiveCollator(small_processor)([{"image": Image.new("RGB", (9, 9)), "text": "a"}])


@pytest.mark.parametrize("kind", ["pairs", "questions", "labels"])
def test_in_training_a_row_that_cannot_be_used_is_replaced_with_another_and_counted(small_processor, caplog, kind):
    options = {"training": True, "on_error": "substitute"}
    collator, batch = {
        "pairs": (ContrastiveCollator(small_processor, **options), rows(4)),
        "questions": (VisualQuestionCollator(small_processor, ANSWERS, **options), questions(4)),
        "labels": (LabelCollator(small_processor.image_processor, LABELS, **options), labeled(4)),
    }[kind]
    batch[2]["image"] = {"bytes": b"nothing", "path": None}
    found = collator(batch)
    assert collator.substituted_rows == 1 and "'p2'" in caplog.text
    (other,) = (n for n in (0, 1, 3) if torch.equal(found["pixel_values"][2], found["pixel_values"][n]))
    again = collator(batch)
    for name, tensor in found.items():
        assert torch.equal(tensor[2], tensor[other]), name
        assert torch.equal(tensor, again[name]), "chosen by the seed"
    with pytest.raises(ValueError, match="None of the 1 rows"):
        collator(batch[2:3])


def test_in_evaluation_unknown_answers_and_unusable_rows_have_labels_of_their_own(small_processor, caplog):
    batch = questions(3)
    batch[0]["answer"] = "a fracture"
    batch[1]["image"] = png_bytes(1)[:60]
    collator = VisualQuestionCollator(small_processor, ANSWERS, on_error="substitute")
    assert collator(batch)["labels"].tolist() == [UNKNOWN_ANSWER, IGNORED_LABEL, 2]
    assert collator.substituted_rows == 1 and "'p1'" in caplog.text
    batch = labeled(3)
    batch[1]["image"] = png_bytes(1)[:60]
    collator = LabelCollator(small_processor.image_processor, LABELS, on_error="substitute")
    assert collator(batch)["labels"].tolist() == [1, IGNORED_LABEL, 1]
    assert collator(batch[1:2])["labels"].tolist() == [IGNORED_LABEL], "a batch of it alone"
    pairs = ContrastiveCollator(small_processor, on_error="substitute")([*rows(2), rows(1)[0] | {"caption": ""}])
    assert any(torch.equal(pairs["pixel_values"][2], pairs["pixel_values"][other]) for other in (0, 1))


def test_rows_are_counted_and_timed_across_workers(small_processor):
    broken = rows(8)
    for row in broken[::4]:
        row["caption"] = ""
    collator = ContrastiveCollator(small_processor, on_error="substitute")
    assert collator.rows_per_second is None
    list(DataLoader(broken, batch_size=4, num_workers=2, collate_fn=collator))
    assert collator.substituted_rows == 2 and collator.rows_per_second > 0


def test_the_collator_measures_its_rows_per_second(small_processor):
    collator = ContrastiveCollator(small_processor)
    started = time.perf_counter()
    collator(rows(8))
    assert 8 / (time.perf_counter() - started) <= collator.rows_per_second < 1e6


def test_an_unknown_value_of_on_error_is_refused(small_processor):
    with pytest.raises(ValueError, match="'raise' or 'substitute'"):
        ContrastiveCollator(small_processor, on_error="ignore")


def pixels_of(processor, content, training: bool = True, **options) -> torch.Tensor:
    collator = ContrastiveCollator(processor, training=training, **options)
    return collator([{"pair_id": "p", "image": content, "caption": "a"}])["pixel_values"]


def test_fast_decoding_only_changes_jpeg_files_in_training(small_processor):
    image = position_gradient(300, 200)
    jpeg, png = encode(image), encode(image, "PNG")
    for content, training, changes in ((jpeg, True, True), (png, True, False), (jpeg, False, False)):
        exact, fast = (pixels_of(small_processor, content, training, fast_decode=fast) for fast in (False, True))
        assert torch.equal(exact, fast) != changes
    opened = Image.open(io.BytesIO(jpeg))
    exact = pixels_of(small_processor, jpeg, fast_decode=False)
    assert torch.equal(pixels_of(small_processor, opened, fast_decode=True), exact)
    assert opened.size == (300, 200)
    with pytest.raises(ValueError, match="'p' cannot be used: image: damaged or truncated"):
        pixels_of(small_processor, jpeg[:2000], fast_decode=True)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_small_jpeg_that_is_decoded_fast_keeps_its_pixels_within_two_levels(small_processor, mode):
    noise = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    content = encode(Image.fromarray(noise).convert(mode))
    exact, fast = (pixels_of(small_processor, content, fast_decode=fast) for fast in (False, True))
    std = small_processor.image_processor.image_std
    levels = (exact - fast).abs() * 255 * torch.tensor(std)[:, None, None]
    assert levels.max() < 2.5 and levels.mean() < 0.1  # both round after the rows and after the columns

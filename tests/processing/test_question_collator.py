"""From questions about images to a batch."""

import logging

import pytest
import torch
from helpers.mirror_writer import png_bytes

from biomedclip.processing import ContrastiveCollator, VisualQuestionCollator
from biomedclip.processing.collator import IGNORED_LABEL, UNKNOWN_ANSWER


ANSWERS = {"yes": 0, "no": 1, "3": 2}


def rows(count: int) -> list[dict]:
    answers = ["Yes", "no.", 3]
    return [
        {"name": f"q{n}", "image": png_bytes(n), "question": "chart " * (n + 1), "answer": answers[n % 3]}
        for n in range(count)
    ]


def test_a_batch_holds_words_pixels_and_the_numbers_of_the_answers(small_processor):
    batch = VisualQuestionCollator(small_processor, ANSWERS)(rows(4))
    inputs = small_processor(text=[row["question"] for row in rows(4)], return_tensors="pt")
    assert torch.equal(batch["input_ids"], inputs["input_ids"])
    assert torch.equal(batch["attention_mask"], inputs["attention_mask"])
    assert batch["pixel_values"].shape == (4, 3, 32, 32)
    assert batch["labels"].tolist() == [0, 1, 2, 0]
    assert VisualQuestionCollator(small_processor, ANSWERS, max_length=3)(rows(4))["input_ids"].shape == (4, 3)


def test_an_answer_that_the_model_cannot_give_is_told_from_a_row_that_cannot_be_used(small_processor, caplog):
    batch = rows(3)
    batch[0]["answer"] = "a fracture"
    batch[1]["image"] = png_bytes(1)[:60]
    collator = VisualQuestionCollator(small_processor, ANSWERS, on_error="substitute")
    with caplog.at_level(logging.WARNING):
        assert collator(batch)["labels"].tolist() == [UNKNOWN_ANSWER, IGNORED_LABEL, 2]
    assert collator.substituted_rows == 1 and "'q1'" in caplog.text


def test_in_training_a_damaged_image_gives_its_place_to_another_question_with_its_answer(small_processor):
    batch = rows(3)
    batch[1]["image"] = b"no image"
    collator = VisualQuestionCollator(small_processor, ANSWERS, training=True, on_error="substitute")
    found = collator(batch)
    taken = 0 if torch.equal(found["pixel_values"][1], found["pixel_values"][0]) else 2
    for name in ("pixel_values", "input_ids", "labels"):
        assert torch.equal(found[name][1], found[name][taken]), name
    assert collator.substituted_rows == 1


def test_crops_are_those_of_the_contrastive_collator_for_the_same_name(small_processor):
    named = [{**row, "pair_id": row["name"], "caption": "a"} for row in rows(3)]
    pixels = VisualQuestionCollator(small_processor, ANSWERS, training=True, seed=5)(rows(3))["pixel_values"]
    assert torch.equal(pixels, ContrastiveCollator(small_processor, training=True, seed=5)(named)["pixel_values"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": b"no image"}, "'q0' cannot be used"),
        ({"question": " "}, "'q0' cannot be used: its question is empty"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(small_processor, change, message):
    with pytest.raises(ValueError, match=message):
        VisualQuestionCollator(small_processor, ANSWERS)([rows(1)[0] | change])


def test_a_column_that_is_missing_is_named(small_processor):
    with pytest.raises(ValueError, match="'q0' has no 'answer'"):
        VisualQuestionCollator(small_processor, ANSWERS)([{"name": "q0", "image": png_bytes(0), "question": "a"}])

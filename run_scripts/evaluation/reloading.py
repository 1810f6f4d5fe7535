"""Load saved models and adapters as users do, and compare them with the trained models."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModel, AutoProcessor, pipeline

from biomedclip import embed_images
from biomedclip.model_cards.reading import read_json
from biomedclip.processing import PairStream, read_image
from biomedclip.processing.bit_depth_biomedclip import to_8_bit


LABELS = ["chest X-ray", "line chart", "gel electrophoresis"]
TEMPLATE = "this is a photo of {}"
LARGEST_DIFFERENCE = 1e-5


def compare_pipeline(model_folder: Path, data: Path) -> dict[str, Any]:
    """Compare the zero-shot pipeline with the model on the first test image of a built dataset.

    Return the scores of the pipeline, and their largest difference from those of the model. Raise `RuntimeError` if
    they differ.
    """
    (image,) = _test_images(data, 1)
    model, processor = _load(model_folder)
    task = "zero-shot-image-classification"
    classifier = pipeline(task, model=str(model_folder), device="cpu", trust_remote_code=False)
    answers = {
        answer["label"]: answer["score"]
        for answer in classifier(image, candidate_labels=LABELS, hypothesis_template=TEMPLATE)
    }
    inputs = processor(text=[TEMPLATE.format(label) for label in LABELS], images=image, return_tensors="pt")
    with torch.no_grad():
        scores = model(**inputs).logits_per_image.softmax(dim=-1)[0].tolist()
    difference = max(abs(score - answers[label]) for label, score in zip(LABELS, scores, strict=True))
    _check("scores of the pipeline and of the model", difference)
    return {"pipeline": answers, "largest_difference_to_the_model": difference}


def compare_adapter(adapter: Path, base: Path, data: Path) -> dict[str, Any]:
    """Load an adapter on its base and compare its embeddings of the first test images with those of the merged model.

    `adapter` is the output folder of `biomedclip train` with `--merge-adapter`. Return the number of steps and
    parameters, the first and last loss, and the largest difference. Raise `RuntimeError` if the embeddings differ.
    """
    images = _test_images(data, 8)
    model, processor = _load(base)
    loaded = PeftModel.from_pretrained(model, str(adapter)).eval().get_base_model()
    merged, _ = _load(adapter / "merged")
    embeds = [embed_images(each, processor, images) for each in (loaded, merged)]
    difference = (embeds[0] - embeds[1]).abs().max().item()
    _check("embeddings of the loaded adapter and of the merged model", difference)
    losses = [e["loss"] for e in read_json(adapter / "trainer_state.json")["log_history"] if "loss" in e]
    results = read_json(adapter / "train_results.json")
    return {
        **{name: results[name] for name in ("steps", "trainable_parameters", "trainable_share")},
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "largest_difference_after_loading": difference,
    }


def _check(what: str, difference: float) -> None:
    if difference > LARGEST_DIFFERENCE:
        raise RuntimeError(f"The {what} differ by {difference}.")


def _load(folder: Path) -> tuple[Any, Any]:
    model = AutoModel.from_pretrained(folder, trust_remote_code=False).eval()
    return model, AutoProcessor.from_pretrained(folder, trust_remote_code=False)


def _test_images(data: Path, count: int) -> list[Any]:
    stream = PairStream(data, "test", columns=["image"])
    return [to_8_bit(read_image(row["image"])).convert("RGB") for row in stream.rows(0, 0, min(count, len(stream)))]

"""The card of a LoRA adapter."""

import pytest
import yaml

from biomedclip.model_cards.adapter_card import fill_adapter_card
from biomedclip.model_cards.checking import find_problems


ADAPTER = {
    "base_model_name_or_path": "lab/base",
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.1,
    "target_modules": {"q_proj", "fc1"},
    "modules_to_save": None,
}
RESULTS = {"steps": 1200, "samples": 4800, "loss": 0.25, "seconds": 3.5, "versions": {"biomedclip": "0.1.0"}}
RESULTS |= {"trainable_parameters": 2000, "parameters": 40000, "trainable_share": 0.05}
RECIPE = {"model_name_or_path": "base", "lora_rank": 16}


def fill(adapter=(), results=(), recipe=(), last=(), **options) -> str:
    options = {"data": "/home/me/pairs"} | options
    options |= {"results": RESULTS | dict(results), "recipe": RECIPE | dict(recipe), "last": dict(last)}
    return fill_adapter_card(ADAPTER | dict(adapter), **options)


def test_the_card_states_the_base_the_adapter_the_costs_and_the_recipe():
    card = fill(last={"loss": 2.5, "runtime": 1})
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["base_model"] == "lab/base" and metadata["library_name"] == "peft" and "lora" in metadata["tags"]
    for row in ("rank | 16", "alpha | 32", "layers | `fc1`, `q_proj`", "trained weights | 2,000 of 40,000 (5.0 %)"):
        assert f"| {row} |" in card
    assert "| steps | 1,200 |" in card and "| pairs seen | 4,800 |" in card and "| validation | loss | 2.5 |" in card
    assert "lora_rank: 16" in card and 'AutoModel.from_pretrained("lab/base")' in card
    assert "merged" not in card
    assert [problem for problem in find_problems(card) if "icense" not in problem] == []


def test_a_local_path_is_not_published():
    card = fill({"base_model_name_or_path": "/home/me/model"})
    assert "/home" not in card and "LoRA adapter of model" in card
    assert "base_model" not in yaml.safe_load(card.split("---")[1])


@pytest.mark.parametrize("name", ["a|b", "x\n# heading", "<script>"])
def test_a_class_name_cannot_change_the_card(name):
    card = fill(results={"classes": [name, "other"]}, recipe={"task": "image-classification"})
    assert "\n# heading" not in card and "<script>" not in card
    (row,) = (line for line in card.splitlines() if line.startswith("| classes"))
    assert row.replace("\\|", "").count("|") == 3


def test_a_classifier_has_its_own_usage_rows_and_metrics():
    results = {"classes": [f"class {number}" for number in range(30)], "validation": {"accuracy": 0.75, "images": 4}}
    card = fill({"modules_to_save": ["classifier"]}, results, {"task": "image-classification"}, merged="merged")
    assert "AutoModelForImageClassification.from_pretrained" in card and "| images seen | 4,800 |" in card
    assert "trained in full | `classifier` |" in card and "and 10 more" in card
    assert "| validation | accuracy | 0.75 |" in card and "The folder `merged`" in card

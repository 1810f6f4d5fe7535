"""Prompts, classes and published values, as versioned data."""

import pytest

from biomedclip.processing.benchmarks.facts import (
    PAPER_MODEL,
    benchmark_names,
    choose_prompts,
    facts_of,
    published_models,
)


PUBLISHED = sorted(name for name in benchmark_names() if facts_of(name)["paper"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_entry_states_its_source_and_has_complete_prompts(name):
    entry = facts_of(name)
    for key in ("title", "homepage", "download", "license", "images", "metric", "paper", "source"):
        assert entry[key], key
    if "classes" in entry:
        assert entry["positive"] in {None, *entry["classes"]}
        for templates in entry["template_sets"].values():
            assert templates and all(template.count("{}") == 1 for template in templates)
        assert next(iter(entry["template_sets"])) == "paper", "the default"
        for name_of_set, names in entry.get("class_names_of_sets", {}).items():
            assert name_of_set in entry["template_sets"] and names.keys() == entry["classes"].keys()


@pytest.mark.parametrize(
    ("name", "prompts", "expected"),
    [
        ("rsna", None, ["a photo of {}", "{} presented in image"]),
        ("lc25000_lung", "rerun", ["a photo of {}", "{} presented in image"]),
        ("lc25000_lung", "paper", ["this is an image of {}", "{} presented in image"]),
    ],
)
def test_a_set_of_prompts_is_chosen_by_name(name, prompts, expected):
    facts = facts_of(name)
    assert choose_prompts(prompts, facts)[:2] == (list(facts["classes"].values()), expected)


def test_a_set_of_prompts_can_have_its_own_class_names():
    names, templates, _ = choose_prompts("biovil", facts_of("rsna"))
    prompts = [template.format(name) for name in names for template in templates]
    assert prompts == ["No evidence of pneumonia", "Findings suggesting pneumonia"]


def test_the_published_values_are_those_of_the_paper():
    values = {name: facts_of(name)["paper"] for name in ("pcam", "lc25000_lung", "lc25000_colon", "tcga_til", "rsna")}
    assert values == {
        "pcam": {"accuracy": 0.7341},
        "lc25000_lung": {"accuracy": 0.6523},
        "lc25000_colon": {"accuracy": 0.9298},
        "tcga_til": {"auroc": 0.6704},
        "rsna": {"accuracy": 0.7895},
    }
    mean = sum(value for metrics in values.values() for value in metrics.values()) / 5
    assert round(100 * mean, 2) == 75.52, "the mean that the paper gives"


def _numbers(values):
    for value in values.values():
        yield from _numbers(value) if isinstance(value, dict) else [value]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values_are_fractions_with_a_source(name):
    for task in {facts_of(name)["task"], *facts_of(name).get("others", {})}:
        entries = published_models(name, task)
        assert len({entry.model for entry in entries}) == len(entries)
        for entry in entries:
            assert entry.source and isinstance(entry.read_from_figure, bool)
            assert all(0 < number < 1 for number in _numbers(entry.values)), entry


@pytest.mark.parametrize(
    ("benchmark", "task", "model", "path", "value", "read_from_figure"),
    [
        ("pmc15m", "retrieval", PAPER_MODEL, "text_to_image recall_at_1", 0.696, True),
        ("pmc15m", "retrieval", "GPT variant of BiomedCLIP", "text_to_image recall_at_10", 0.857, True),
        ("pmc15m", "retrieval", "GPT variant of BiomedCLIP", "image_to_text recall_at_1", 0.6, True),
        ("pmc15m", "retrieval", "OpenAI CLIP", "text_to_image recall_at_1", 0.0848, True),
        ("pmc15m", "retrieval", "OpenAI CLIP", "image_to_text recall_at_10", 0.195, True),
        ("pmc15m", "retrieval", "PubMedCLIP", "text_to_image recall_at_5", 0.0251, True),
        ("pmc15m", "retrieval", "PubMedCLIP", "image_to_text recall_at_5", 0.0213, True),
        ("pcam", "zero-shot", "GPT variant of BiomedCLIP", "accuracy", 0.701, True),
        ("lc25000_lung", "zero-shot", "GPT variant of BiomedCLIP", "accuracy", 0.606, True),
        ("lc25000_colon", "zero-shot", "GPT variant of BiomedCLIP", "accuracy", 0.892, True),
        ("tcga_til", "zero-shot", "GPT variant of BiomedCLIP", "auroc", 0.705, True),
        ("rsna", "zero-shot", PAPER_MODEL, "accuracy", 0.7895, False),
        ("rsna", "zero-shot", "GPT variant of BiomedCLIP", "accuracy", 0.81, True),
        ("rsna", "zero-shot", "BioViL", "accuracy", 0.732, False),
        ("rsna", "zero-shot", "BioViL", "auroc", 0.831, False),
        ("rsna", "zero-shot", "GLoRIA", "accuracy", 0.7, False),
        ("rsna", "linear-probe", PAPER_MODEL, "by_fraction 0.1 accuracy", 0.83, True),
        ("rsna", "linear-probe", "BioViL", "by_fraction 0.01 accuracy", 0.805, False),
        ("rsna", "linear-probe", "BioViL", "by_fraction 0.1 auroc", 0.884, False),
        ("rsna", "linear-probe", "BioViL", "by_fraction 1 accuracy", 0.822, False),
        ("rsna", "linear-probe", "GLoRIA", "by_fraction 1 accuracy", 0.79, False),
        ("vqa_rad", "visual-question-answering", "PubMedCLIP", "accuracy", 0.721, False),
        ("vqa_rad", "visual-question-answering", "BiomedGPT-B", "closed_accuracy", 0.813, False),
        ("slake", "visual-question-answering", "MAML", "accuracy", 0.783, False),
        (
            "slake",
            "visual-question-answering",
            "LLaVA-Med (BiomedCLIP encoder; open: token recall)",
            "open_accuracy",
            0.8711,
            False,
        ),
    ],
)
def test_published_values_of_other_models_are_those_of_their_sources(
    benchmark, task, model, path, value, read_from_figure
):
    entry = next(entry for entry in published_models(benchmark, task) if entry.model == model)
    found = entry.values
    for key in path.split():
        found = found[key]
    assert (found, entry.read_from_figure) == (value, read_from_figure)


def test_nothing_is_published_for_other_tasks_and_own_images():
    assert published_models("pcam", "visual-question-answering") == published_models("pcam", "linear-probe") == []
    assert published_models("imagefolder", "zero-shot") == published_models("medmnist", "zero-shot") == []


def test_each_set_of_medmnist_has_its_published_number_of_classes():
    numbers = {"pathmnist": 9, "dermamnist": 7, "octmnist": 4, "pneumoniamnist": 2, "retinamnist": 5, "breastmnist": 2}
    numbers |= {"bloodmnist": 8, "tissuemnist": 8, "organamnist": 11, "organcmnist": 11, "organsmnist": 11}
    assert {name: len(classes) for name, classes in facts_of("medmnist")["sets"].items()} == numbers

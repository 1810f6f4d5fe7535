"""Prompts, classes and published values, as versioned data."""

import pytest

from processing.benchmarks.facts import facts_of, medmnist_classes
from processing.benchmarks.loading import BENCHMARK_NAMES


@pytest.mark.parametrize("name", sorted(set(BENCHMARK_NAMES) - {"medmnist", "imagefolder"}))
def test_every_published_benchmark_says_where_its_facts_and_files_come_from(name):
    entry = facts_of(name)
    for key in ("title", "homepage", "download", "license", "images", "metric", "paper", "source"):
        assert entry[key], key
    if "classes" in entry:
        assert entry["positive"] in {None, *entry["classes"]}
        for templates in entry["template_sets"].values():
            assert templates and all(template.count("{}") == 1 for template in templates)
        assert next(iter(entry["template_sets"])) == "paper", "the default"


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


def test_a_set_of_medmnist_has_as_many_classes_as_it_is_published_with():
    numbers = {"pathmnist": 9, "dermamnist": 7, "octmnist": 4, "pneumoniamnist": 2, "retinamnist": 5, "breastmnist": 2}
    numbers |= {"bloodmnist": 8, "tissuemnist": 8, "organamnist": 11, "organcmnist": 11, "organsmnist": 11}
    assert {flag: len(medmnist_classes(flag)) for flag in numbers} == numbers
    assert medmnist_classes("homepage") is None and medmnist_classes("nothing") is None

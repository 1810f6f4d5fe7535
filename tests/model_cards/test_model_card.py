"""The model card: its metadata, its content, and the detection of missing parts."""

import re

import pytest
import yaml
from helpers.build_reports import full_scale_report, smallest_report
from helpers.model_results import LEAKS, WEIGHTS, retrieval_result, zero_shot_result
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index

from biomedclip.model_cards.checking import find_problems
from biomedclip.model_cards.model_card import NOT_MEASURED, PUBLISHED, benchmark_name, fill_model_card, public_result
from biomedclip.run_scripts.hub.card_facts import card_facts


MODEL = {
    "layout": "transformers",
    "weights": WEIGHTS,
    "parameters": 195_902_721,
    "image_parameters": 86_191_872,
    "text_parameters": 109_710_848,
    "image_tower": {"layers": 12, "width": 768, "heads": 12, "feed_forward": 3072, "input": "images of 224 pixels"},
    "text_tower": {"layers": 12, "width": 768, "heads": 12, "feed_forward": 3072, "input": "30,522 words"},
    "embedding": 512,
    "context_length": 256,
    "logit_scale": 4.4454,
    "dtype": "float32",
}
VERSIONS = {"python": "3.11.7", "biomedclip": "0.1.0"}


def facts(**other):
    training = {
        "results": {"steps": 240, "samples": 30_720, "loss": 2.5, "versions": VERSIONS},
        "last": {"text to image recall at 1": 0.25},
        "recipe": {"learning_rate": 5e-4, "max_steps": 240},
    }
    return {
        "title": "BiomedCLIP",
        "name": "lab/model",
        "license": "apache-2.0",
        "model": MODEL,
        "conversion": None,
        "training": training,
        "dataset": full_scale_report() | {"synthetic": False, "id": "lab/pairs"},
        "results": [public_result(retrieval_result()), public_result(zero_shot_result())],
        "paper": card_facts({"open_clip_obstacle": None})["paper"],
        "open_clip": True,
        "versions": VERSIONS,
    } | other


CARDS = {
    "full": facts(),
    "nothing measured": facts(results=[]),
    "weights only": facts(results=[], training=None, dataset=None, license=None),
    "synthetic": facts(dataset=smallest_report() | {"synthetic": True}),
}


def section(card: str, title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", card, re.MULTILINE | re.DOTALL)[1]


def test_the_metadata_contain_each_measured_number():
    data = ModelCard(fill_model_card(facts())).data
    assert data.license == "apache-2.0" and data.datasets == ["lab/pairs"]
    assert data.pipeline_tag == "zero-shot-image-classification"
    found = {
        (result.task_type, result.dataset_type, result.metric_name): result.metric_value for result in data.eval_results
    }
    assert found["image-text-retrieval", "pmc15m", "text to image, recall at 1"] == 0.2013
    assert found["zero-shot-image-classification", "pcam", "AUROC"] == 0.5334
    assert len(found) == 6 + 3
    pcam = next(result for result in data.eval_results if result.dataset_type == "pcam")
    assert (pcam.dataset_split, pcam.dataset_revision) == ("test", "00ffaa1122334455")
    assert pcam.dataset_name == "PCam, 32,768 rows"


def test_the_model_index_has_the_form_of_the_hub():
    card = fill_model_card(facts())
    written = yaml.safe_load(card.split("---\n")[1])["model-index"]
    assert written == eval_results_to_model_index("BiomedCLIP", ModelCard(card).data.eval_results)
    assert "model-index" not in yaml.safe_load(fill_model_card(facts(results=[])).split("---\n")[1])


@pytest.mark.parametrize("name", CARDS)
def test_the_rows_of_a_table_have_equal_numbers_of_cells(name):
    for block in re.findall(r"(?:^\|.*\n)+", fill_model_card(CARDS[name]), re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block


@pytest.mark.parametrize("name", CARDS)
def test_every_card_has_a_warning_code_and_a_citation(name):
    card = fill_model_card(CARDS[name])
    assert "Not for clinical use" in card and "2303.00915" in card and "@article{zhang2025biomedclip" in card
    assert 'AutoModel.from_pretrained("lab/model")' in card and "trust_remote_code=True" in card


def test_each_result_has_command_date_and_fingerprint():
    text = section(fill_model_card(facts()), "Results")
    row = "| Zero-shot classification | PCam, test | 32,768 | accuracy | 0.5123 | 0.5001 to 0.5245 | 0.7341 |"
    assert row in text and "recall of class, lymph node metastasis | 0.1163" in text
    assert "biomedclip evaluate zero-shot --model run --data pcam --benchmark pcam" in text
    assert "2026-11-24" in text and "`00ffaa1122334455`" in text


def test_published_values_of_other_models_have_a_source():
    text = section(fill_model_card(facts()), "Results")
    assert "were not measured for this card" in text
    assert "| Zero-shot classification | PCam | BiomedCLIP | accuracy: 0.7341 | a paper |" in text
    assert "| Zero-shot classification | PCam | Other | accuracy: 0.7007 | its figure; read off a figure |" in text
    assert text.count("| Other |") == 1
    twice = [public_result(zero_shot_result(weights=weights)) for weights in ("0", "1")]
    assert fill_model_card(facts(results=twice)).count("| Other |") == 1, "of several results on one benchmark"
    without = public_result(zero_shot_result())
    del without["published"]
    assert "were not measured for this card" not in fill_model_card(facts(results=[without]))


@pytest.mark.parametrize(
    ("benchmark", "selection", "shown"),
    [
        ("tcga_til", {"cancer": "brca", "positive": 3}, "TCGA-TIL (brca)"),
        ("rsna", {"rsna_split": "paper-fractions", "seed": 0}, "RSNA pneumonia (paper-fractions)"),
        ("pcam", None, "PCam"),
    ],
)
def test_the_selection_of_a_benchmark_is_named(benchmark, selection, shown):
    result = zero_shot_result(benchmark=benchmark)
    result["data"] = result["data"] | {"selection": selection}
    card = fill_model_card(facts(results=[public_result(result)]))
    assert f"| Zero-shot classification | {shown}, test |" in section(card, "Results")


def test_damaged_images_and_leaks_are_stated():
    text = section(fill_model_card(facts()), "Results")
    assert "**Damaged images, excluded: 7**: `picture|0.png` (truncated &lt;img>)" in text and "and 2 more" in text
    assert "**Leaks: 14 of 32,768 test images are also in the training data, or are near-duplicates**: same" in text
    assert "Damaged images: none." in text and "Leaks between training and test: not checked." in text
    clean = zero_shot_result()
    clean["data"] |= {"leaks": LEAKS | {"same_group": 0, "same_picture": 0, "leaked": 0}}
    assert "test: none (same group 0, same bytes 0, same picture 0)" in fill_model_card(facts(results=[clean]))


def test_own_data_have_the_name_of_their_folder():
    card = fill_model_card(facts(results=[public_result(zero_shot_result(benchmark=None))]))
    assert "| Zero-shot classification | pcam, test |" in card and find_problems(card) == []
    (own, *_) = ModelCard(card).data.eval_results
    assert (own.dataset_type, own.dataset_name) == ("own", "pcam, 32,768 rows")


def test_a_linear_probe_has_fractions_and_standard_deviations():
    by_fraction = {"0.1": {"accuracy": 0.61, "accuracy_sd": 0.02, "runs": [{"C": 10.0, "accuracy": 0.6}]}}
    probe = zero_shot_result(task="linear-probe", metrics={"accuracy": 0.7, "chance": 0.5, "by_fraction": by_fraction})
    card = fill_model_card(facts(results=[probe]))
    assert "| accuracy, 10 % of the labels | 0.6100 | ± 0.0200 |" in card and "sd |" not in card
    names = [result.metric_name for result in ModelCard(card).data.eval_results]
    assert names == ["accuracy", "accuracy, 10 % of the labels"]


def test_the_results_of_the_paper_that_were_not_measured_are_named():
    """Six values of retrieval, five of zero-shot, two rows of the probe, eight values of questions."""
    text = section(fill_model_card(facts(results=[])), "Results")
    assert text.count(f"| {NOT_MEASURED} | {NOT_MEASURED} |") == 6 + 5 + 2 + 8
    text = section(fill_model_card(facts()), "Results")
    assert text.count(f"| {NOT_MEASURED} | {NOT_MEASURED} |") == 4 + 2 + 8
    for row in (
        "Visual question answering | SLAKE | none | open accuracy | not measured | not measured | 0.8430",
        "Visual question answering | VQA-RAD | none | token F1 | not measured | not measured | 0.7313",
        "Linear probe | RSNA pneumonia | none | accuracy, 10 % of the labels | not measured | not measured | 0.8300",
        "Linear probe | PCam | none | all | not measured | not measured | see the paper",
    ):
        assert f"| {row} |" in text, row


def test_the_recipe_can_be_read_back():
    text = section(fill_model_card(facts()), "Training recipe")
    assert "| pairs seen | 30,720 |" in text
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    assert recipe == {"learning_rate": 5e-4, "max_steps": 240}


def test_the_training_data_have_their_licenses():
    report = full_scale_report()
    text = section(fill_model_card(facts()), "Training data")
    for code, count in report["licenses"].items():
        assert f"| {code} | {count:,} |" in text
    assert "inventory 2026-11-23" in text
    assert "The data are synthetic" in fill_model_card(CARDS["synthetic"])


def test_the_published_weights_have_the_data_and_recipe_of_the_paper():
    conversion = {"source": PUBLISHED, "layout": "transformers", "versions": VERSIONS, "verification": None}
    card = fill_model_card(facts(training=None, dataset=None, license="mit", conversion=conversion))
    assert "15,282,336" in card and "108,576" not in card and "MIT, the license of the published weights." in card
    assert find_problems(card) == []


def test_a_complete_card_has_no_problem():
    assert find_problems(fill_model_card(facts())) == []
    assert find_problems(fill_model_card(facts(results=[]))) == []


def test_a_missing_fact_is_a_problem():
    problems = find_problems(fill_model_card(CARDS["weights only"]))
    for start in ("metadata: license", "Training data: Not stated", "Training recipe: Not stated", "License: Not"):
        assert any(problem.startswith(start) for problem in problems), start
    recipe = facts()["training"] | {"recipe": None}
    assert "Training recipe: Not" in find_problems(fill_model_card(facts(training=recipe)))[0]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("| accuracy | 0.5123 |", "| accuracy | |", "Results: line .* has an empty cell"),
        ("| accuracy | 0.5123 |", "| accuracy | None |", "Results: line .* has an empty cell"),
        ("| accuracy | 0.5123 |", "| accuracy | nan |", "Results: line .* has an empty cell"),
        ("for research only", "TODO", "BiomedCLIP: line .* has a placeholder"),
        ("for research only", "[More Information Needed]", "has a placeholder"),
        ("for research only", "$title", "has a placeholder"),
        ('AutoModel.from_pretrained("lab/model")', 'AutoModel.from_pretrained("ORG/NAME")', "Usage: .* placeholder"),
        ("license: apache-2.0", "license: ''", "metadata: license"),
        ("license: apache-2.0", "license: [", "metadata: cannot be read"),
        ("value: 0.5123", "value: .nan", "metadata: model-index has nan"),
        ("value: 0.5123", "value: ''", "metadata: model-index has ''"),
        ("      type: pcam\n", "", "metadata: "),
        ("## Environment\n", "## Empty\n\n## Environment\n", "Empty: the section is empty"),
    ],
)
def test_an_empty_or_invalid_part_is_found(old, new, problem):
    card = fill_model_card(facts())
    assert old in card
    assert any(re.search(problem, found) for found in find_problems(card.replace(old, new)))


def test_an_empty_last_section_is_found():
    card = fill_model_card(facts())
    assert find_problems(card[: card.index("```bibtex")]) == ["Citation: the section is empty"]


def test_the_card_contains_no_path_of_the_machine():
    results = [public_result(zero_shot_result())]
    assert "/home" not in fill_model_card(facts(results=results)) and "/data" not in str(results)


def test_a_dataset_of_medmnist_has_the_name_of_its_file():
    result = zero_shot_result(benchmark="medmnist")
    assert benchmark_name(result) == "MedMNIST"
    result["data"] = {**result["data"], "path": "/data/medmnist/pathmnist_224.npz"}
    assert benchmark_name(result) == "MedMNIST, pathmnist_224"


def test_a_folder_that_sentence_transformers_loads_has_an_example():
    card = fill_model_card(facts(model=MODEL | {"sentence_transformers": True}))
    assert 'SentenceTransformer("lab/model")' in card and "sentence-transformers" in ModelCard(card).data.tags
    without = fill_model_card(facts())
    assert "SentenceTransformer" not in without and "sentence-transformers" not in ModelCard(without).data.tags

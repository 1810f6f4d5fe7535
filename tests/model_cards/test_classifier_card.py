"""Cards of classifiers: what of the results of private data they state, and how they are filled."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.model_results import LEAKS, zero_shot_result
from huggingface_hub import ModelCard

from biomedclip.model_cards.checking import find_problems
from biomedclip.model_cards.classifier_card import fill_classifier_card
from biomedclip.model_cards.classifier_results import (
    public_evaluation,
    public_measurement,
    public_notes,
    public_recipe,
    public_training,
)
from biomedclip.processing.images.findings import FindingImages, policy_notes
from biomedclip.processing.images.labeled import ALL_ARE_TEST, LabeledImages, choose_split, shared_groups
from biomedclip.processing.stratified import hold_out_groups_with_labels
from biomedclip.run_scripts.classification.seen_images import SEEN_UNKNOWN, notes_on_seen, notes_on_seen_validation
from biomedclip.run_scripts.evaluation.calibration import fit_temperature
from biomedclip.run_scripts.evaluation.findings.calibration import fit_log_odds
from biomedclip.run_scripts.evaluation.findings.decisions import (
    DecidedFindings,
    ScoredFindings,
    decide_findings,
    notes_on_findings,
)
from biomedclip.run_scripts.evaluation.findings.zero_shot import notes_of
from biomedclip.run_scripts.evaluation.image_classification import _absent
from biomedclip.run_scripts.evaluation.reliability import Decided, Scored, notes_on, notes_on_worse, own_calibration
from biomedclip.run_scripts.evaluation.run import note_if_few_drawn


CLASSES = ["benign", "malignant"]


def images(groups: list[str] | None) -> LabeledImages:
    labels = [CLASSES[number % 2] for number in range(20)]
    return LabeledImages([None] * 20, labels, [f"mustermann_{number}.png" for number in range(20)], groups)


def test_notes_of_the_evaluation_are_published_without_names():
    patients = [f"Mustermann {number}" for number in range(20)]
    split = {"train": images(patients), "test": images(patients)}
    drawn = [
        choose_split({"train": images(groups)}, "/home/mustermann", "test", 0.2).notes for groups in (None, patients)
    ]
    labels = np.array([[1.0, -1.0], [np.nan, 0.0]])
    options = SimpleNamespace(calibrate=True, sensitivity=[0.9], specificity=[], coverage=[0.99])
    decided = Decided(100.0, {"without_threshold": {"sensitivity": ["malignant"]}}, {})
    fitted = notes_on(Scored(np.zeros((3, 2)), np.array([0, 0, 0])), options, decided)
    notes = [ALL_ARE_TEST, *drawn[0], *drawn[1], *shared_groups(split), *policy_notes(labels, "one", "ignore")]
    worse = {"before_calibration": {"nll": 0.1, "ece": 0.1}, "calibration": {"nll": 0.2, "ece": 0.3}}
    notes += [*notes_on_worse(worse), *notes_on_seen({"train": 1_200, "validation": 3}, 2_000)]
    notes += [SEEN_UNKNOWN, *notes_on_seen_validation({"train": 1_200, "validation": 3}, 2_000)]
    notes.append("Leak: 2 of 7 test images are, or look like, validation images, on which decisions were fitted.")
    notes.append(
        "3 of the images on which this calibration was fitted were used to train the classifier, so that it is"
    )
    notes += [*note_if_few_drawn(7, None), *note_if_few_drawn(7, patients[:7]), *fitted]
    public = public_notes(notes, CLASSES)
    assert len(public) == len(notes), "each note has a public form"
    assert not any("ustermann" in note for note in public)
    assert any(note.startswith("--sensitivity: no threshold for 'malignant'") for note in public)
    assert "Leak: 20 groups." in public


def test_notes_on_findings_are_published_without_other_names():
    generator = np.random.default_rng(0)
    log_odds = np.stack([generator.normal(size=40), np.arange(40.0), -np.arange(40.0)], axis=1)
    targets = np.stack([np.zeros(40), np.arange(40) >= 20, np.arange(40) % 30 >= 15], axis=1).astype(float)
    of_findings = ScoredFindings(log_odds, targets, [f"Mustermann {number}" for number in range(40)])
    options = SimpleNamespace(calibrate=True, sensitivity=[0.9], specificity=[], coverage=[], seed=0)
    names = ["absent", "separated", "unrelated"]
    decided = decide_findings(of_findings, of_findings, names, options)
    worse = {"before_calibration": {"nll": 0.1, "ece": 0.1}, "calibration": {"nll": 0.2, "ece": 0.3}}
    notes = [*notes_on_findings(of_findings, names, options, decided), *notes_on_worse(worse, " of 'absent'")]
    log_odds[3, 1], targets[:, 0] = np.nan, np.nan
    notes += notes_on_findings(None, names, options, decide_findings(of_findings, None, names, options))
    assert sum("are measured:" in note for note in notes) == 2
    public = public_notes(notes, names)
    assert len(public) == len(notes) >= 6, "each note has a public form"
    assert public_notes(notes, CLASSES) == [note for note in public if "'" not in note], "other names stay here"
    assert not any("ustermann" in note for note in public)
    assert any(note.endswith("0.200 after; expected calibration error 0.100 before, 0.300 after.") for note in public)


@pytest.mark.parametrize(
    "note",
    [
        "/home/mustermann/scans: a file is odd.",
        "Left out, because all labels are blank: mustermann.",
        "Because groups are not split, the images that are kept have none of 'mustermann = 1'.",
        "No image of the test split is of the class 'mustermann'.",
    ],
)
def test_other_notes_are_not_published(note):
    assert public_notes([note], CLASSES) == []


@pytest.mark.parametrize(
    ("note", "public"),
    [
        (
            "Leaks are unknown without training images. /home/mustermann: there is no train split.",
            "Leaks are unknown without training images.",
        ),
        (
            "Left out, because they are in no list of a split: 3 of 9 images of a.csv, such as mustermann.png.",
            "Left out, because they are in no list of a split: 3 of 9 images.",
        ),
    ],
)
def test_the_part_of_a_note_that_names_files_is_cut_off(note, public):
    assert public_notes([note], CLASSES) == [public]


def reason_of(fit, *arrays) -> str:
    with pytest.raises(ValueError) as caught:
        fit(*map(np.array, arrays))
    return str(caught.value)


def test_each_reason_not_to_calibrate_is_published():
    names, yes_no = ["Crohn's disease"], np.arange(40) >= 20
    scores = np.where(yes_no, 9.0, -9.0)
    reasons = [
        reason_of(fit_log_odds, scores, yes_no),
        reason_of(fit_log_odds, np.where(np.arange(40) == 20, -9.0, scores), yes_no),
        reason_of(fit_log_odds, scores, np.zeros(40, dtype=bool)),
        reason_of(fit_log_odds, [], np.zeros(0, dtype=bool)),
        reason_of(fit_log_odds, np.full(40, np.nan), yes_no),
        reason_of(fit_temperature, np.stack([-scores, scores], axis=1), yes_no.astype(int)),
        f"nearly {reason_of(fit_temperature, np.stack([-scores, scores], axis=1), yes_no.astype(int))}",
    ]
    of_findings = ScoredFindings(scores[:, None], yes_no[:, None].astype(float))
    options = SimpleNamespace(calibrate=True, sensitivity=[], specificity=[], coverage=[], seed=0)
    for reason in reasons:
        results = {"findings": {}, "not_calibrated": {names[0]: reason}, "without_threshold": {}}
        notes = notes_on_findings(of_findings, names, options, DecidedFindings({}, results))
        public = public_notes(notes, names)
        assert len(public) == len(notes) == 3, reason
        assert public[-1].rstrip(".") in notes[-1] and len(public[-1]) > 40, "the sentence is not cut in a number"
        assert not public[-1].endswith(("are.", "from.", "20."))
    one = Scored(np.zeros((40, 2)), yes_no.astype(int))
    for reason in [*reasons[-2:], reason_of(fit_temperature, np.full((2, 2), np.nan), [0, 1])]:
        notes = notes_on(one, options, Decided(1.0, {"not_calibrated": reason}, {}))
        assert len(public_notes(notes, CLASSES)) == len(notes) == 3, reason


def test_notes_on_the_calibration_of_the_model_are_published(tmp_path):
    (tmp_path / "mustermann").mkdir()
    content = {"schema": 1, "temperature": 2.0, "labels": CLASSES, "weights": "0", "prompts": None, "bias": None}
    (tmp_path / "mustermann" / "calibration.json").write_text(json.dumps(content | {"fitted_on": {"fingerprint": "1"}}))
    for weights, count in (("0", 2), ("other", 1)):
        _, notes = own_calibration(str(tmp_path / "mustermann"), CLASSES, weights, "1")
        public = public_notes(notes, CLASSES)
        assert len(public) == len(notes) == count and "mustermann" not in str(public)


def test_notes_on_intervals_groups_and_absent_classes_are_published():
    targets = np.array([[1.0, 0.0]] * 4)
    findings = FindingImages([None] * 4, targets, CLASSES, ["a.png"] * 4)
    notes = notes_of(SimpleNamespace(images=findings), None) + _absent(CLASSES, ["benign"], "test")
    groups = ["p1", "p1", "p2", "p3"]
    labels = [["benign = 1"], ["malignant = 0"], ["benign = 1"], ["benign = 1"]]
    notes += hold_out_groups_with_labels(groups, labels, 0.3, 0)[2]
    assert len(notes) == 4 and public_notes(notes, CLASSES) == notes


def test_the_card_states_how_many_notes_are_not_published():
    card = fill_classifier_card(facts(results=[measured(notes=["/home/mustermann is odd.", ALL_ARE_TEST])]))
    assert (
        "Other notes, which can name files or patients and are not published: 1." in card and "mustermann" not in card
    )
    assert "Other notes" not in fill_classifier_card(facts(results=[measured(notes=[ALL_ARE_TEST])]))


@pytest.mark.parametrize(
    ("command", "public"),
    [
        (
            "biomedclip evaluate image-classification --model '/home/mustermann/a b' x --data=a.csv --calibrate",
            "biomedclip evaluate image-classification --model MODEL --data DATA --calibrate",
        ),
        (
            "biomedclip evaluate image-classification --group_column case --label-columns a b --output-dir r/s",
            "biomedclip evaluate image-classification --group-column COLUMN --label-columns a b --output-dir RESULTS",
        ),
        (
            "biomedclip evaluate image-classification --subgroup-column a b --later=mustermann --old a b --seed=1",
            "biomedclip evaluate image-classification --subgroup-column COLUMN --later VALUE --old VALUE --seed=1",
        ),
        ("an 'open quote", "biomedclip evaluate image-classification"),
    ],
)
def test_a_command_names_no_files_and_columns(command, public):
    assert public_evaluation(command) == public


def test_only_listed_fields_are_published():
    result = zero_shot_result(task="image-classification", benchmark=None)
    result["subgroups"] = {"id": {"mustermann": {"few": True}, "F": {"few": False, "images": 90}}}
    result["secret"] = result["data"]["secret"] = "mustermann"
    result["metrics"]["by_patient"] = result["subgroups"]["id"]["F"]["by_patient"] = {"mustermann": 0.5}
    assert public_measurement(result, CLASSES)["subgroups"] == {}, "no subgroups unless columns are named"
    public = public_measurement(result, CLASSES, ["id", "device"])
    assert "mustermann" not in str(public) and "picture|" not in str(public) and "/data" not in str(public)
    assert public["data"]["damaged_images"] == 7 and public["data"]["leaks"]["same_picture"] == 3
    assert public["metrics"] == {name: value for name, value in result["metrics"].items() if name != "by_patient"}
    assert result["data"]["notes"] and public["data"]["notes"] == []
    assert public["subgroups"] == {"id": {"F": {"few": False, "images": 90}}} and public["subgroups_left_out"] == 1
    training = {"steps": 3, "data": "/home/mustermann", "damaged": [{"name": "mustermann.png"}], "images": {"a": 2}}
    assert public_training(training) == {"steps": 3, "images": {"a": 2}, "damaged_images": 1}
    assert public_recipe({"learning_rate": 1, "group_column": "case", "train_data": "x"}) == {"learning_rate": 1}


def test_findings_of_subgroups_with_few_labels_are_not_published():
    cells = {"common": {"few": False, "auroc": 0.75}, "rare": {"few": True, "auroc": 0.5}}
    subgroups = {"sex": {"F": {"few": False, "images": 90, "findings": cells}}}
    result = zero_shot_result(task="image-classification", benchmark=None) | {"subgroups": subgroups}
    public = public_measurement(result, CLASSES, ["sex"])
    assert public["subgroups"]["sex"]["F"]["findings"] == {"common": cells["common"]}
    assert public["subgroups_left_out"] == 1
    assert set(cells) == {"common", "rare"}, "the result itself stays the same"


def facts(**other) -> dict:
    labels = other.pop("labels", CLASSES)
    result = zero_shot_result(task="image-classification", benchmark=None)
    model = {"weights": "0123", "labels": labels, "several": False, "type": "biomedclip", "method": None}
    return {
        "title": "Classifier",
        "name": "lab/c",
        "license": "mit",
        "model": model | {"needs_package": True, "parameters": 10},
        "base": {"name": "lab/base", "license": "mit", "weights": None},
        "dataset": None,
        "training": {"images": dict.fromkeys(labels, 3), "versions": {"biomedclip": "0.1.0"}},
        "recipe": {},
        "calibration": None,
        "results": [public_measurement(result, labels)],
        "date": "2026-12-01",
        "versions": {"biomedclip": "0.1.0"},
    } | other


def test_a_filled_card_is_complete_and_a_missing_fact_is_a_problem():
    assert find_problems(fill_classifier_card(facts())) == []
    assert find_problems(fill_classifier_card(facts(results=[]))) == []
    for name in ("license", "training"):
        assert any("Not stated" in problem for problem in find_problems(fill_classifier_card(facts(**{name: None}))))


def measured(**data) -> dict:
    result = zero_shot_result(task="image-classification", benchmark=None)
    return public_measurement(result | {"data": result["data"] | {"leaks": None} | data}, CLASSES)


@pytest.mark.parametrize(
    ("data", "trained"),
    [
        ({}, False),
        ({"seen_in_training": {"train": 0, "validation": 3}, "leaks": LEAKS | {"leaked": 0}}, False),
        ({"seen_in_training": {"train": 54, "validation": 0}}, True),
        ({"leaks": LEAKS}, True),
    ],
)
def test_results_on_training_images_are_marked_and_not_in_the_model_index(data, trained):
    card = fill_classifier_card(facts(results=[measured(**data)]))
    assert ("| own data, test (includes training images) | 32,768 | accuracy |" in card) == trained
    assert ("| own data, test | 32,768 | accuracy |" in card) == (not trained)
    assert ("They are not in the metadata" in card) == trained
    assert bool(ModelCard(card).data.eval_results) == (not trained)


def test_only_the_results_on_training_images_are_left_out_of_the_model_index():
    clean = measured(fingerprint="cafe")
    card = fill_classifier_card(facts(results=[clean, measured(seen_in_training={"train": 1})]))
    assert {entry.dataset_revision for entry in ModelCard(card).data.eval_results} == {"cafe"}


def test_counted_training_images_are_not_called_unchecked():
    assert "Leaks between training and test: not checked." in fill_classifier_card(facts(results=[measured()]))
    card = fill_classifier_card(facts(results=[measured(seen_in_training={"train": 54, "validation": 0})]))
    assert "found by their files or pixels: 54 train, 0 validation." in card and "not checked" not in card


@pytest.mark.parametrize(
    ("temperature", "images", "text"),
    [
        (
            2.0,
            60,
            "the temperature 2, fitted on 60 validation images.\n`biomedclip classify` divides the logits by it.",
        ),
        (
            [2.0, 3.0],
            None,
            "a temperature and a bias of each finding.\n"
            "`biomedclip classify` divides the logits of each finding by its temperature and adds its bias.",
        ),
    ],
)
def test_the_card_states_how_the_calibration_is_applied_and_what_it_was_fitted_on(temperature, images, text):
    calibration = {"temperature": temperature, "images": images, "fingerprint": "0"}
    assert text in fill_classifier_card(facts(calibration=calibration))


def test_exact_intervals_are_not_called_a_bootstrap():
    card = " ".join(fill_classifier_card(facts(results=[measured()])).split())
    assert "Fractions of 0 and 1 have exact intervals" in card


def test_the_card_of_findings_states_their_calibration_thresholds_and_subgroups():
    generator = np.random.default_rng(0)
    log_odds = generator.normal(size=(60, 2))
    of_findings = ScoredFindings(log_odds, (generator.random((60, 2)) < 0.4).astype(float))
    options = SimpleNamespace(calibrate=True, sensitivity=[0.9], specificity=[], coverage=[], seed=0)
    decided = decide_findings(of_findings, of_findings, CLASSES, options).results
    result = zero_shot_result(task="image-classification", benchmark=None) | {"decisions": decided}
    subgroup = {"few": False, "images": 90, "auroc": 0.75, "auroc_interval": [0.7, 0.8], "findings": {}}
    result["subgroups"] = {"device": {"old": subgroup}}
    calibration = {"temperature": [2.0, 3.0], "images": 60, "fingerprint": "0"}
    measured = public_measurement(result, CLASSES, ["device"])
    card = fill_classifier_card(facts(results=[measured], calibration=calibration))
    assert find_problems(card) == []
    for part in (
        "a temperature and a bias of each finding, fitted on 60 validation images",
        "Calibration of the probabilities (means over findings):",
        f"| Brier score | {decided['before_calibration']['brier']:.3f} | {decided['calibration']['brier']:.3f} |",
        f"| benign | sensitivity 0.9 | {decided['operating_points'][0]['threshold']:.4g} |",
        "| 0.750 (0.700 to 0.800) |",
    ):
        assert part in card, part


def test_class_names_cannot_add_markup_or_metadata():
    labels = ["<img src=x>", "a|b", "---\nlicense: gpl", "{{ title }}"]
    card = fill_classifier_card(facts(labels=labels, title="<b>x</b>\n---"))
    assert "<img" not in card and "<b>" not in card.split("---", 2)[2] and "| a&#124;b | 3 |" in card
    assert ModelCard(card).data.license == "mit"


def test_a_data_set_and_a_base_model_on_the_hub_are_in_the_metadata():
    data = ModelCard(fill_classifier_card(facts(dataset="lab/scans"))).data
    assert data.datasets == ["lab/scans"] and data.base_model == "lab/base"
    local = {"name": "base", "license": None, "weights": None}
    assert ModelCard(fill_classifier_card(facts(base=local))).data.base_model is None

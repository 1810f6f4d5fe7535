"""Labels and their prompts from the command line, text files, YAML files and the shipped taxonomy."""

import pytest

from biomedclip.run_scripts.classification.labels import notes_on_numbers, read_labels
from biomedclip.run_scripts.cli.errors import UsageError


def test_labels_of_the_command_line_get_the_template():
    assert read_labels(["chest X-ray", "brain MRI"]) == {
        "chest X-ray": ["this is a photo of chest X-ray"],
        "brain MRI": ["this is a photo of brain MRI"],
    }
    assert read_labels(["a", "b {c}"], ["x {}", "{} y {}"]) == {
        "a": ["x a", "a y a"],
        "b {c}": ["x b {c}", "b {c} y b {c}"],
    }


def test_a_text_file_has_one_label_in_each_line(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeffchest X-ray\r\n\r\n  yes, no \r\n".encode())
    assert read_labels([str(path)], ["{}"]) == {"chest X-ray": ["chest X-ray"], "yes, no": ["yes, no"]}


def test_a_yaml_file_has_prompts_that_are_used_as_they_are(tmp_path):
    path = tmp_path / "labels.yaml"
    path.write_text("X-ray:\n  - a chest radiograph\n  - an X-ray\n007: one prompt\nyes:\nno: []\n", encoding="utf-8")
    assert read_labels([str(path)]) == {
        "X-ray": ["a chest radiograph", "an X-ray"],
        "007": ["one prompt"],
        "yes": ["this is a photo of yes"],
        "no": ["this is a photo of no"],
    }
    assert read_labels([str(path)], ["see {}"])["X-ray"] == ["see a chest radiograph", "see an X-ray"]
    path.write_text("[left, right]\n", encoding="utf-8")
    assert read_labels([str(path)], ["{}"]) == {"left": ["left"], "right": ["right"]}


def test_labels_that_differ_in_a_hyphen_are_different(tmp_path):
    (tmp_path / "labels.yaml").write_text("X-ray: a\nX_ray: b\n", encoding="utf-8")
    assert list(read_labels([str(tmp_path / "labels.yaml")])) == ["X-ray", "X_ray"]


def test_the_taxonomy_has_the_thirty_classes_of_imageclef():
    labels = read_labels(["taxonomy:imagetypes"])
    assert len(labels) == 30
    prompts = [prompt for texts in labels.values() for prompt in texts]
    assert len(set(prompts)) == len(prompts) and all(len(texts) >= 2 for texts in labels.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [b\n", "labels.yaml, line 2: invalid YAML"),
        ("just text\n", "must contain `label:"),
        ("", "must contain `label:"),
        ("a: {b: c}\nd: e\n", "the prompts of 'a' must be a list of texts"),
        ("a: [[b]]\nd: e\n", "the prompts of 'a' must be a list of texts"),
        ("a: x\na: y\n", "line 2: invalid YAML: the key 'a' is repeated"),
        ("'': x\na: y\n", "a label is empty"),
    ],
)
def test_a_yaml_file_that_is_no_list_of_labels_is_refused(tmp_path, content, message):
    (tmp_path / "labels.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_labels([str(tmp_path / "labels.yaml")])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["only"], "at least two labels"),
        (["chest X-ray,brain MRI"], "Separate labels with spaces, and quote each one"),
        (["taxonomy:organs"], "unknown taxonomy. Choose taxonomy:imagetypes"),
        (["taxonomy:imagetypes", "other"], "Pass it alone"),
    ],
)
def test_labels_that_make_no_sense_are_a_wrong_command_line(values, message):
    with pytest.raises(UsageError, match=message):
        read_labels(values)


def test_a_missing_file_and_a_bad_template_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.txt: the file does not exist"):
        read_labels([str(tmp_path / "nowhere.txt")])
    with pytest.raises(UsageError, match="has no {} for the label"):
        read_labels(["a", "b"], ["a photo"])
    with pytest.raises(ValueError, match="'a' occurs twice"):
        read_labels(["a", "b", "a"])


def test_names_without_letters_are_noted_because_prompts_of_them_mean_nothing():
    assert notes_on_numbers(["0", "grade 1", "COVID-19", "骨", "2-3"], "Name them.") == [
        "'0', '2-3' in prompts mean nothing to a text encoder. Name them."
    ]
    assert notes_on_numbers(["chest X-ray", "G1"], "Name them.") == []
    assert "'4' and 3 more in prompts" in notes_on_numbers(map(str, range(8)), "")[0]

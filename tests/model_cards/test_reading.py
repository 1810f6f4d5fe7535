"""Files of untrusted folders are refused with an error that names the file."""

import json
import os
import re

import pytest

from biomedclip.model_cards import reading
from biomedclip.model_cards.reading import check_shape, find_file, read_json, read_text, read_yaml


@pytest.fixture
def folder(tmp_path):
    """A folder with one file, and a secret file next to the folder."""
    (tmp_path / "secret.json").write_text('{"secret": 1}')
    (tmp_path / "model" / "sub").mkdir(parents=True)
    (tmp_path / "model" / "card.json").write_text('{"a": 1}')
    (tmp_path / "model" / "out").symlink_to("..")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("../secret.json", "points outside its folder"),
        ("{folder}/../secret.json", "points outside its folder"),
        ("y", "points outside its folder"),
        ("out/secret.json", "points outside its folder"),
        ("sub/../../secret.json", "points outside its folder"),
        ("/dev/zero", "points outside its folder"),
        ("..", "points outside its folder"),
        ("nothing", "is a broken link"),
        ("x.json", "cannot be opened"),
        ("sub", "is a folder"),
    ],
)
def test_a_link_that_points_outside_or_is_broken_is_refused(folder, target, message):
    (folder / "y").symlink_to("../secret.json")
    (folder / "x.json").symlink_to(target.format(folder=folder))
    with pytest.raises(ValueError, match=rf"x\.json.* {message}"):
        find_file(folder, "x.json")


def test_a_file_in_a_linked_subfolder_is_refused(folder):
    with pytest.raises(ValueError, match=r"out/secret.json is a link that points outside its folder"):
        find_file(folder, "out/secret.json")


def test_a_link_within_the_folder_is_followed_if_its_target_is_allowed(folder):
    (folder / "x.json").symlink_to("card.json")
    assert find_file(folder, "x.json") == (folder / "card.json").resolve()
    with pytest.raises(ValueError, match=r"x\.json is a link to card.json, which is not published"):
        find_file(folder, "x.json", allowed=lambda name: name == "x.json")


def test_the_folder_itself_may_be_a_link(folder, tmp_path):
    (tmp_path / "latest").symlink_to("model")
    assert find_file(tmp_path / "latest", "card.json") == (folder / "card.json").resolve()
    assert find_file(tmp_path / "latest", "nothing.json") is None


@pytest.mark.parametrize("read", [read_text, read_json, read_yaml])
def test_a_named_pipe_is_refused_at_once(folder, read):
    os.mkfifo(folder / "pipe.json")
    with pytest.raises(ValueError, match=r"pipe\.json is a named pipe"):
        find_file(folder, "pipe.json")
    with pytest.raises(ValueError, match=r"pipe\.json is a named pipe"):
        read(folder / "pipe.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": NaN}', "damaged"),
        (b'{"a": -Infinity}', "damaged"),
        (b'{"a": 1e999}', "damaged"),
        (b'{"a": ' + b"9" * 5000 + b"}", "damaged"),
        (b'{"a": 1', "damaged"),
        (b"", "damaged"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b'{"a": "\\ud800"}', "damaged"),
        (b"[" * 60 + b"]" * 60, "nested too deeply"),
        (b"[" * 200_000 + b"]" * 200_000, "nested too deeply"),
        (b'"' + b"x" * 2000 + b'"', "larger than"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_json_that_is_not_strict_or_too_large_is_refused(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(reading, "LARGEST", 1000 if b"xxx" in content else reading.LARGEST)
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.json .*{message}"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: &a [x]\nb: *a", "contains an alias"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("a: .nan", "not JSON compliant"),
        ("a: 2026-11-24", "not JSON serializable"),
        ("a: [", "parsing"),
        ("[" * 60 + "]" * 60, "nested too deeply"),
    ],
)
def test_yaml_with_aliases_or_values_that_json_does_not_have_is_refused(tmp_path, content, message):
    (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(ValueError, match=rf"recipe\.yaml is damaged.*{message}"):
        read_yaml(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "the file must be an object, not []"),
        ({}, "steps is missing"),
        ({"steps": "3"}, "steps must be int, not '3'"),
        ({"steps": True}, "steps must be int, not True"),
        ({"steps": None}, "steps must be int, not None"),
        ({"steps": 3, "loss": "low"}, "loss must be int or float, not 'low'"),
        ({"steps": 3, "rows": {}}, "rows must be a list, not {}"),
        ({"steps": 3, "rows": [{"name": "a"}, {"name": 1}]}, "rows[1].name must be str, not 1"),
        ({"steps": 3, "counts": {"a": 1, "b": [1]}}, "counts.b must be int, not [1]"),
    ],
)
def test_a_field_of_another_type_is_named(tmp_path, content, message):
    shape = {"steps": int, "loss?": (int, float), "rows?": [{"name": str}], "counts?": {str: int}}
    with pytest.raises(ValueError, match=re.escape(f"x.json: {message}")):
        check_shape(tmp_path / "x.json", content, shape)
    check_shape(tmp_path / "x.json", {"steps": 3, "loss": None, "rows": [], "other": object()}, shape)


def test_valid_json_is_read_unchanged(tmp_path):
    content = {"a": [1, 2.5, None, True, "é\u202e"], "b": {"c": {}}}
    (tmp_path / "x.json").write_text(json.dumps(content))
    assert read_json(tmp_path / "x.json") == content

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
    return tmp_path / "model"


def link(path, target):
    path.symlink_to(target)


LEADING_OUT = {
    "a link to a file": lambda folder: link(folder / "x.json", "../secret.json"),
    "a link with an absolute path": lambda folder: link(folder / "x.json", folder.parent / "secret.json"),
    "a link to a link": lambda folder: (link(folder / "y", "../secret.json"), link(folder / "x.json", "y")),
    "a link through a linked folder": lambda folder: (
        link(folder / "out", ".."),
        link(folder / "x.json", "out/secret.json"),
    ),
    "a link that leaves and comes back through another": lambda folder: link(
        folder / "x.json", "sub/../../secret.json"
    ),
    "a link to a device": lambda folder: link(folder / "x.json", "/dev/zero"),
    "a link to a folder": lambda folder: link(folder / "x.json", ".."),
}


@pytest.mark.parametrize("make", LEADING_OUT.values(), ids=LEADING_OUT.keys())
def test_a_link_that_leaves_the_folder_is_refused_by_name(folder, make):
    make(folder)
    with pytest.raises(ValueError, match=r"x\.json is a link that leaves its folder"):
        find_file(folder, "x.json")


def test_a_file_in_a_linked_subfolder_is_refused(folder):
    link(folder / "out", "..")
    with pytest.raises(ValueError, match=r"out/secret.json is a link that leaves its folder"):
        find_file(folder, "out/secret.json")


@pytest.mark.parametrize(
    ("target", "message"), [("nothing", "leads to nothing"), ("x.json", "cannot be opened"), ("sub", "is a folder")]
)
def test_a_broken_link_is_refused(folder, target, message):
    link(folder / "x.json", target)
    with pytest.raises(ValueError, match=rf"x\.json.* {message}"):
        find_file(folder, "x.json")


def test_a_link_within_the_folder_is_followed_if_its_target_is_allowed(folder):
    link(folder / "x.json", "card.json")
    assert find_file(folder, "x.json") == (folder / "card.json").resolve()
    with pytest.raises(ValueError, match=r"x\.json is a link to card.json, which is not published"):
        find_file(folder, "x.json", allowed=lambda name: name == "x.json")


def test_the_folder_itself_may_be_a_link(folder, tmp_path):
    link(tmp_path / "latest", "model")
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
        (b'{"a": NaN}', "holds NaN"),
        (b'{"a": -Infinity}', "holds -Infinity"),
        (b'{"a": 1e999}', "holds 1e999"),
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
def test_json_that_is_not_strict_or_too_large_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.json .*{message}"):
        read_json(tmp_path / "x.json", largest=1000 if b"xxx" in content else reading.LARGEST)


def test_the_number_of_values_from_yaml_aliases_is_limited(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (tmp_path / "recipe.yaml").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"recipe\.yaml .*more than 100,000 values"):
        read_yaml(tmp_path / "recipe.yaml")
    (tmp_path / "recipe.yaml").write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(ValueError, match=r"recipe\.yaml is damaged"):
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


def test_a_whole_file_is_read_as_it_is(tmp_path):
    content = {"a": [1, 2.5, None, True, "é\u202e"], "b": {"c": {}}}
    (tmp_path / "x.json").write_text(json.dumps(content))
    assert read_json(tmp_path / "x.json") == content

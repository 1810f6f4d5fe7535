"""`biomedclip recipes` lists and resolves recipes."""

import pytest
import yaml

from biomedclip.run_scripts.cli.options import RECIPES, find_recipes, read_recipe, recipe_names
from biomedclip.run_scripts.main import main


def printed(capsys, *arguments: str) -> str:
    assert main(["recipes", *arguments]) == 0
    return capsys.readouterr().out


def test_each_recipe_is_listed_with_the_first_sentence_of_its_comment(capsys):
    lines = [line.split(maxsplit=1) for line in printed(capsys).splitlines()]
    assert [name for name, _ in lines] == recipe_names()
    for name, sentence in lines:
        comment = " ".join((RECIPES / f"{name}.yaml").read_text().replace("# ", "").split())
        assert comment.startswith(sentence) and sentence.endswith(".") and len(sentence) > 20


@pytest.mark.parametrize("name", recipe_names())
def test_a_printed_recipe_has_the_options_of_the_shipped_one(capsys, tmp_path, name):
    (tmp_path / "copy.yaml").write_text(printed(capsys, name))
    sections = yaml.safe_load((tmp_path / "copy.yaml").read_text())
    assert "base" not in sections and "train" in sections
    for verb in sections:
        assert read_recipe(str(tmp_path / "copy.yaml"), [verb]) == read_recipe(name, [verb])


def test_a_printed_recipe_names_its_bases(capsys):
    assert "\n# context_77, which extends context_256, which extends biomedclip\n" in printed(capsys, "context_77")
    assert [path.stem for path, _ in find_recipes("context_77")] == ["context_77", "context_256", "biomedclip"]


def test_a_recipe_of_the_user_without_sections_is_printed(capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text("learning_rate: 0.001\nseed: 3\n")
    assert yaml.safe_load(printed(capsys, str(tmp_path / "mine.yaml"))) == {"learning_rate": 0.001, "seed": 3}


def test_an_unknown_recipe_is_answered_with_the_likely_one(capsys):
    assert main(["recipes", "contxt_77"]) == 2
    assert "Did you mean 'context_77'?" in capsys.readouterr().err

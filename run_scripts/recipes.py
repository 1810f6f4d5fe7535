"""List the shipped recipes, or print one with the options of its bases.

biomedclip recipes
biomedclip recipes context_77
"""

import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from .cli.fields import option
from .cli.options import RECIPES, find_recipes, parse_options, read_recipe, recipe_names
from .main import VERBS


EXAMPLE = "biomedclip recipes context_77 > my_recipe.yaml"


@dataclass
class RecipesOptions:
    """Options of `biomedclip recipes`."""

    name: str | None = option(
        None, "Recipe to print: the name of a shipped one, or a YAML file. Can be the first positional argument."
    )


def main(arguments: Sequence[str]) -> None:
    """Run `biomedclip recipes`."""
    description = __doc__.split("\n\n")[0]
    (options,) = parse_options(
        "recipes", [RecipesOptions], arguments, description=description, example=EXAMPLE, positionals=["name"]
    )
    sys.stdout.write(resolved(options.name) if options.name else listing())


def listing() -> str:
    """Return the names of the shipped recipes with their descriptions. Only a terminal gets wrapped lines."""
    names = recipe_names()
    width = max(map(len, names)) + 2
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    lines = []
    for name in names:
        text = opening((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
        words = textwrap.TextWrapper(columns, name.ljust(width), " " * width, break_long_words=False)
        lines.append(words.fill(text))
    return "\n".join(lines) + "\n"


def opening(content: str) -> str:
    """Return the first sentence of the comment at the start of a recipe."""
    comment = re.match(r"(#.*\n)*", content)[0]  # type: ignore[index]
    paragraph = re.sub(r"^# ?", "", comment, flags=re.MULTILINE).split("\n\n")[0]
    return re.split(r"(?<=\.)\s", " ".join(paragraph.split()))[0]


def resolved(name: str) -> str:
    """Return a recipe without `base`: with the options of its bases."""
    recipes = find_recipes(name)
    chain = ", which extends ".join(path.stem for path, _ in recipes)
    sections = {section for _, content in recipes for section in content if section in VERBS}
    description = opening(recipes[0][0].read_text(encoding="utf-8-sig"))
    verbs = [verb for verb in VERBS if verb in sections]
    options = {verb: read_recipe(name, [verb]) for verb in verbs} if verbs else read_recipe(name, ["train"])
    return f"# {description}\n# {chain}\n" + yaml.safe_dump(options, sort_keys=False, allow_unicode=True)

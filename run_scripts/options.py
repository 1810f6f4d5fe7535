"""Options of a verb: out of a recipe and off the command line, the latter winning."""

import argparse
import dataclasses
import difflib
import textwrap
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from model_cards.fill import public_name

from .main import TRUST_OPTION, VERBS


RECIPES = Path(__file__).parent / "recipes"
WRITTEN_RECIPE = "recipe.yaml"  # what a run leaves in its folder
# Where a run reads and writes, and how it looks meanwhile: nothing that its result depends on.
_OF_THE_MACHINE = frozenset(
    """
    train_data output_dir logging_dir resume_from_checkpoint disable_tqdm report_to run_name project debug
    push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision local_rank
    accelerator_config trackio_space_id trackio_bucket_id trackio_static_space_id use_cpu deepspeed fsdp_config
    dataloader_pin_memory do_train do_eval do_predict trust_remote_code
    """.split()
)


def parse_options(
    verb: str,
    option_classes: Sequence[type],
    arguments: Sequence[str],
    *,
    description: str,
    example: str,
    sections: Sequence[str] | None = None,
    shown: Sequence[str] | None = None,
    base_recipe: str | None = None,
    alternatives: Sequence[Sequence[str]] = (),
    positionals: Sequence[str] = (),
) -> tuple[Any, ...]:
    """
    Parses the options of a verb into its dataclasses.

    Args:
        verb: Name of the verb.
        option_classes: Dataclasses whose fields are the options; no field may stand in two of them.
        arguments: The command line behind the verb.
        description: What the verb does.
        example: A line to paste.
        sections: Sections of a recipe that apply; the verb's own when left out.
        shown: Options that `--help` explains; all of them when left out. The others work all the same.
        base_recipe: A shipped recipe that holds what `--config` does not say.
        alternatives: Groups of options that exclude each other: where one stands on the command line, those of its
            group in the recipe do not count.
        positionals: Options whose values may also stand without their names, in this order.

    Returns:
        One object of each class.

    Raises:
        ValueError: A recipe that cannot be read, or an option that the verb does not have.
    """
    parser = HfArgumentParser(
        option_classes,
        prog=f"biomedclip {verb}",
        description=textwrap.fill(description, 80),
        epilog=_epilog(example, shown),
        usage=" ".join([f"biomedclip {verb}", *(name.upper().replace("_", "-") for name in positionals), "[options]"]),
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", metavar="RECIPE", help=f"YAML file, or a shipped recipe: {', '.join(recipe_names())}"
    )
    explained = _explained_by_transformers(option_classes)
    for action in parser._actions:
        if shown is not None and action.dest not in (*shown, "config", "help"):
            action.help = argparse.SUPPRESS
        elif action.help and action.help == explained.get(action.dest):
            # transformers explains each option at length; the first sentence says what it is.
            action.help = action.help.split(". ")[0].removesuffix(".") + "."
        if action.option_strings[-1].startswith("--no-") and action.help != argparse.SUPPRESS:
            # The parser repeats what the option without it does.
            action.help = f"The opposite of --{action.option_strings[-1].removeprefix('--no-')}."

    arguments = _spelled_out(parser, arguments, positionals)
    config = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config.add_argument("--config")
    for recipe in filter(None, [base_recipe, config.parse_known_args(list(arguments))[0].config]):
        recipe_options = read_recipe(recipe, sections or [verb])
        for group in alternatives:
            if set(group) & _names(arguments):
                recipe_options = {name: value for name, value in recipe_options.items() if name not in group}
        _set_defaults(parser, recipe_options, recipe, verb)
    *options, _, unknown = parser.parse_args_into_dataclasses(args=list(arguments), return_remaining_strings=True)
    if unknown:
        raise ValueError(_what_is_unknown(parser, verb, unknown))
    return tuple(options)


def _what_is_unknown(parser: argparse.ArgumentParser, verb: str, arguments: Sequence[str]) -> str:
    """A sentence on the first of some arguments that belong to no option."""
    name = next((argument.split("=")[0] for argument in arguments if argument.startswith("--")), None)
    if name is None:
        return f"{arguments[0]!r} belongs to no option. See: biomedclip {verb} --help"
    spelled = [option for option in parser._option_string_actions if "_" not in option]
    close = difflib.get_close_matches(name.replace("_", "-"), spelled, n=1)
    return f"There is no option {name}.{f' Did you mean {close[0]}?' if close else ''} See: biomedclip {verb} --help"


def _explained_by_transformers(option_classes: Sequence[type]) -> dict[str, str | None]:
    """What `TrainingArguments` says of its fields, for a verb that has them: others do without torch, for seconds."""
    if not any(
        base.__name__ == "TrainingArguments" for option_class in option_classes for base in option_class.__mro__
    ):
        return {}
    from transformers import TrainingArguments

    return {option.name: option.metadata.get("help") for option in dataclasses.fields(TrainingArguments)}


def _spelled_out(parser: argparse.ArgumentParser, arguments: Sequence[str], positionals: Sequence[str]) -> list[str]:
    """The command line with the name of an option before each value that stands alone, and `true` behind bare flags."""
    named, waiting = [], list(positionals)
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("-"):
            named += [f"--{waiting.pop(0)}", argument] if waiting else [argument]
            continue
        named.append(argument)
        action = parser._option_string_actions.get(argument)
        if action is None:
            continue
        if action.nargs == "?":  # a flag, as --verify or --verify true
            follows = bool(rest) and rest[0].lower() in ("true", "false", "yes", "no", "1", "0")
            named.append(rest.pop(0) if follows else "true")
        elif action.nargs in ("*", "+"):
            while rest and not rest[0].startswith("--"):
                named.append(rest.pop(0))
        elif action.nargs is None and rest:
            named.append(rest.pop(0))
    return named


def option_value(verb: str, name: str, arguments: Sequence[str]) -> str | None:
    """
    One option before all of them are parsed, for a verb whose other options depend on it.

    Args:
        verb: Name of the verb.
        name: Name of the option, with underscores.
        arguments: The command line behind the verb.

    Returns:
        Its value on the command line, or else in the recipe; none where neither has it.

    Raises:
        ValueError: A recipe that cannot be read.
    """
    parser = argparse.ArgumentParser(prog=f"biomedclip {verb}", add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", nargs="?", const="true")
    known, _ = parser.parse_known_args(list(arguments))
    in_recipe = read_recipe(known.config, [verb]).get(name) if known.config else None
    return getattr(known, name) or in_recipe


def is_true(value: str | bool | None) -> bool:
    """Whether a flag is set, as the command line or a recipe has it."""
    return str(value).lower() in ("true", "yes", "1", "t", "y")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """One spelling of an option, with dashes, and a short name for its value."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        value = "|".join(map(str, action.choices)) if action.choices else action.metavar or action.dest.split("_")[-1]
        option = action.option_strings[-1]
        return option if action.nargs in (0, "?") else f"{option} {str(value).upper() if not action.choices else value}"


def _names(arguments: Sequence[str]) -> set[str]:
    """Options that stand on the command line, with underscores."""
    return {argument[2:].split("=")[0].replace("-", "_") for argument in arguments if argument.startswith("--")}


def recipe_names() -> list[str]:
    """Recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_recipe(name: str, sections: Sequence[str]) -> dict[str, Any]:
    """
    Reads the options of a recipe.

    A recipe holds either options, or a section of options for each verb. It may build on another one, by a line
    `base: NAME` beside them: then it holds what the base does not say or says otherwise. `null` gives an option of the
    base back its default.

    Args:
        name: A YAML file, or the name of a shipped recipe; `recipes/NAME.yaml` is one too, wherever the user stands.
            A base may be a file beside the recipe as well.
        sections: Verbs whose sections are read, the later winning.

    Returns:
        Options by name, with underscores.

    Raises:
        ValueError: No such recipe, not a mapping of options, or one that builds on itself.
    """
    return _read_recipe(name, _recipe_path(name), sections, [])


def _read_recipe(name: str, path: Path, sections: Sequence[str], above: Sequence[Path]) -> dict[str, Any]:
    """The options of a recipe with those of its bases; `above` are the recipes that build on it."""
    if path.resolve() in above:
        chain = " -> ".join(recipe.stem for recipe in [*above, path])
        raise ValueError(f"{name} builds on itself: {chain}. Take one of these lines `base:` away.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} is not YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{name} must hold options, one `name: value` a line.")
    content = dict(content)
    base = content.pop("base", None)
    if content and all(key in VERBS and isinstance(value, Mapping) for key, value in content.items()):
        content = {key: value for section in sections for key, value in content.get(section, {}).items()}
    options = {str(key).replace("-", "_"): value for key, value in content.items()}
    if "trust_remote_code" in options:
        raise ValueError(f"{name}: trust_remote_code cannot be set by a recipe. Pass {TRUST_OPTION} to the command.")
    if base is not None:
        options = _read_recipe(str(base), _recipe_path(str(base), path), sections, [*above, path.resolve()]) | options
    return {key: value for key, value in options.items() if value is not None}


def write_recipe(folder: str | Path, options: Sequence[Any], **also: Any) -> None:
    """
    Writes what a run was asked for into its folder, as a recipe: the same run is had by `--config` with it.

    Args:
        folder: Folder of the run; made where it does not exist.
        options: Objects of option classes. What has its default, and what belongs to the machine, is left out, and of
            local paths only the last part is kept.
        also: Options that take the place of theirs; none takes an option out.
    """
    recipe: dict[str, Any] = {}
    for part in options:
        for option in dataclasses.fields(part):
            value = getattr(part, option.name)
            value = value.value if isinstance(value, Enum) else value
            made = option.default_factory
            default = option.default if made is dataclasses.MISSING else made()
            default = default.value if isinstance(default, Enum) else default
            # Some options of None are set to what stands for nothing when they are read.
            if option.name in _OF_THE_MACHINE or value == default or (default is None and not value):
                continue
            recipe[option.name] = public_name(value) if isinstance(value, str) else value
    recipe = {name: value for name, value in (recipe | also).items() if value is not None}
    Path(folder).mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    (Path(folder) / WRITTEN_RECIPE).write_text(text, encoding="utf-8")


def _recipe_path(name: str, above: Path | None = None) -> Path:
    """The file of a recipe, which the recipe in the file `above` may name as its base."""
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") or Path(name).is_file() else RECIPES / f"{name}.yaml"
    if above is not None and (above.parent / name).is_file():
        return above.parent / name
    if not path.is_file() and path.parent.name == RECIPES.name:
        path = RECIPES / path.name
    if not path.is_file():
        wanted = f"{above}: there is no recipe {name!r} to build on" if above else f"There is no recipe {name!r}"
        raise ValueError(f"{wanted}: neither a file nor one of {', '.join(recipe_names())}.")
    return path


def _set_defaults(parser: argparse.ArgumentParser, options: Mapping[str, Any], recipe: str, verb: str) -> None:
    actions = {action.dest: action for action in parser._actions}
    for name, value in options.items():
        if name not in actions or name in ("config", "help"):
            close = difflib.get_close_matches(name, actions, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else f" See: biomedclip {verb} --help"
            raise ValueError(f"{recipe}: {name!r} is not an option of biomedclip {verb}.{hint}")
        action = actions[name]
        action.required = False
        if action.choices:
            for item in value if isinstance(value, list) else [value]:
                if item not in action.choices:
                    raise ValueError(f"{recipe}: {name} must be one of {', '.join(action.choices)}, not {item!r}.")
        # As text, so that argparse converts and checks it as if it stood on the command line (YAML reads 5e-4 as text).
        if isinstance(value, list):
            value = [parser._get_value(action, str(item)) for item in value]
        elif value is not None and not isinstance(value, Mapping):
            value = str(value)
        parser.set_defaults(**{name: value})


def _epilog(example: str, shown: Sequence[str] | None) -> str:
    rest = "\n\nEvery other field of transformers.TrainingArguments is an option too." if shown is not None else ""
    return f"example:\n  {example}{rest}"

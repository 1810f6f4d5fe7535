"""Options of a verb: out of a recipe and off the command line, the latter winning."""

import argparse
import dataclasses
import difflib
import os
import textwrap
from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from biomedclip.model_cards.formatting import public_name

from ..main import TRUST_OPTION, VERBS
from .errors import UsageError
from .reporting import write_text


RECIPES = Path(__file__).parents[1] / "recipes"
WRITTEN_RECIPE = "recipe.yaml"  # what a run leaves in its folder
# An option, values of it (None for any), and options that have no effect with these values. If the command line sets
# the first, a recipe's values of the others are dropped instead of being refused. The same holds for a recipe and its
# base.
_MOOT: tuple[tuple[str, Collection[str] | None, Collection[str]], ...] = (
    ("eval_strategy", ("no", "epoch"), ("eval_steps",)),
    ("eval_strategy", ("no",), ("eval_delay", "load_best_model_at_end", "metric_for_best_model", "greater_is_better")),
    ("eval_strategy", ("no",), ("max_eval_pairs", "per_device_eval_batch_size")),
    ("eval_strategy", ("no",), ("zero_shot_data", "zero_shot_split", "zero_shot_templates")),
    ("save_strategy", ("no", "epoch", "best"), ("save_steps",)),
    ("save_strategy", ("no",), ("save_total_limit",)),
    ("logging_strategy", ("no", "epoch"), ("logging_steps",)),
    ("report_to", ("none",), ("run_name", "project", "trackio_space_id", "trackio_bucket_id")),
    ("report_to", ("none",), ("trackio_static_space_id",)),
    ("gradient_checkpointing", ("false", "no", "0"), ("gradient_checkpointing_kwargs",)),
    ("model_name_or_path", None, ("tokenizer", "vocabulary_size")),
    ("text_model", None, ("vocabulary_size",)),
    ("tokenizer", None, ("vocabulary_size",)),
    ("fsdp", ("false", "no", "0"), ("fsdp_config",)),
)
# Options that a written recipe leaves out: paths that every run is given anew, secrets, what is shown meanwhile, and
# what transformers derives from other options.
_NOT_OF_THE_RUN = frozenset(
    """
    train_data output_dir resume_from_checkpoint disable_tqdm hub_token local_rank do_train do_eval do_predict
    activation_checkpointing activation_checkpointing_kwargs trust_remote_code
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
    """Parses the options of a verb into its dataclasses.

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
        UsageError: If the recipe cannot be read, the verb does not have an option, or options contradict each other.
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
    given = _given(arguments)
    dropped = _made_moot(given)
    dropped |= {name for group in alternatives if set(group) & set(given) for name in group}
    for recipe in filter(None, [base_recipe, config.parse_known_args(list(arguments))[0].config]):
        recipe_options = read_recipe(recipe, sections or [verb])
        recipe_options = {name: value for name, value in recipe_options.items() if name not in dropped}
        _set_defaults(parser, recipe_options, recipe, verb, _mapping_options(option_classes))
    _, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise UsageError(_what_is_unknown(parser, verb, unknown))
    try:
        *options, _ = parser.parse_args_into_dataclasses(args=list(arguments))
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        # The option classes check their values when they are constructed; transformers' use several error types.
        raise UsageError(str(error)) from error
    return tuple(options)


def _mapping_options(option_classes: Sequence[type]) -> set[str]:
    """Names of the options that may hold a mapping, such as `model_config`."""
    hints = {name: hint for option_class in option_classes for name, hint in get_type_hints(option_class).items()}
    return {
        name for name, hint in hints.items() if dict in {get_origin(part) or part for part in (hint, *get_args(hint))}
    }


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
    """One option before all of them are parsed, for a verb whose other options depend on it.

    Args:
        verb: Name of the verb.
        name: Name of the option, with underscores.
        arguments: The command line behind the verb.

    Returns:
        Its value on the command line, or else in the recipe; none where neither has it.

    Raises:
        UsageError: If the recipe cannot be read.
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


def _given(arguments: Sequence[str]) -> dict[str, str]:
    """Options of the command line with underscores, and the first value of each."""
    given = {}
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        if argument.startswith("--"):
            name, _, value = argument[2:].partition("=")
            given[name.replace("-", "_")] = value or following
    return given


def _made_moot(given: Mapping[str, Any]) -> set[str]:
    """Options that have no effect with the given ones."""
    # YAML reads `no` as False.
    texts = {name: "no" if value is False else str(value).lower() for name, value in given.items() if value is not None}
    return {
        name
        for option, values, names in _MOOT
        if option in texts and (values is None or texts[option] in values)
        for name in names
    }


def recipe_names() -> list[str]:
    """Recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_recipe(name: str, sections: Sequence[str]) -> dict[str, Any]:
    """Read the options of a recipe.

    A recipe holds either options, or one section of options for each verb. A line `base: NAME` at the top level makes
    it build on another recipe: then it holds only what differs. `null` resets an option of the base to its default.

    Args:
        name: A YAML file, or the name of a shipped recipe; `recipes/NAME.yaml` is one too, in any working directory.
            A base may also be a file beside the recipe.
        sections: Verbs whose sections are read. The later ones win.

    Returns:
        Options by name, with underscores.

    Raises:
        UsageError: If there is no such recipe, it is not valid YAML, its keys are not options or sections, no section
            applies, or it builds on itself.
    """
    options, found = _read_recipe(name, _recipe_path(name), sections, [])
    if found and not set(sections) & found:
        wanted = " or ".join(f"`{section}:`" for section in sections)
        raise UsageError(
            f"{name} has no section {wanted}, so it would have no effect. It has {', '.join(sorted(found))}."
        )
    return {key: value for key, value in options.items() if value is not None}


def _read_recipe(
    name: str, path: Path, sections: Sequence[str], above: Sequence[Path]
) -> tuple[dict[str, Any], set[str] | None]:
    """Read the options of a recipe with those of its bases.

    Returns:
        The options, and the sections that the recipe and its bases have; None if any of them has options without
        sections, which apply to every verb.
    """
    if path.resolve() in above:
        chain = " -> ".join(recipe.stem for recipe in [*above, path])
        raise UsageError(f"{name} builds on itself: {chain}. Take one of these lines `base:` away.")
    content = _load_yaml(name, path)
    base = content.pop("base", None)
    if base is not None and not isinstance(base, str):
        raise UsageError(f"{name}: base must be the name or file of one recipe, not {base!r}.")
    found: set[str] | None = {key for key in content if key in VERBS}
    if found:
        content = _of_sections(name, content, sections)
    elif content:
        found = None
        for key, value in content.items():
            if isinstance(value, Mapping) and (close := difflib.get_close_matches(key, VERBS, n=1)):
                raise UsageError(f"{name}: there is no section {key!r}. Did you mean {close[0]!r}?")
    options = _with_underscores(name, content)
    if "trust_remote_code" in options:
        raise UsageError(f"{name}: trust_remote_code cannot be set by a recipe. Pass {TRUST_OPTION} to the command.")
    if base is not None:
        of_base, found_in_base = _read_recipe(base, _recipe_path(base, path), sections, [*above, path.resolve()])
        moot = _made_moot(options)
        options = {key: value for key, value in of_base.items() if key not in moot} | options
        found = None if found is None or found_in_base is None else found | found_in_base
    return options, found


def _load_yaml(name: str, path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_UniqueKeys)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        if isinstance(error, _RepeatedKey):
            raise UsageError(f"{name}{line}: {error.problem}.") from error
        raise UsageError(f"{name}{line}, is not YAML: {error.problem or error.context}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{name} is not YAML: {error}") from error
    if not isinstance(content, Mapping):
        found = "is empty" if content is None else f"holds a {type(content).__name__}"
        raise UsageError(f"{name} {found}. A recipe must hold options, one `name: value` a line.")
    return {str(key): value for key, value in content.items()}


class _RepeatedKey(yaml.constructor.ConstructorError):
    """A key that stands twice in a mapping."""


class _UniqueKeys(yaml.SafeLoader):
    """YAML without repeated keys, of which PyYAML would keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for number, key in enumerate(keys):
            if any(key.value == earlier.value for earlier in keys[:number]):
                raise _RepeatedKey(problem=f"the key {key.value!r} stands there twice", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep=deep)


def _of_sections(name: str, content: Mapping[str, Any], sections: Sequence[str]) -> dict[str, Any]:
    """Return the options of some sections of a recipe, after a check that all keys are sections."""
    for key, value in content.items():
        if key not in VERBS:
            close = difflib.get_close_matches(key, VERBS, n=1) if isinstance(value, Mapping) else []
            hint = f"Did you mean the section {close[0]!r}?" if close else "Move it into the section of its verb."
            raise UsageError(f"{name}: {key!r} stands beside sections, and is not one of {', '.join(VERBS)}. {hint}")
        if value is not None and not isinstance(value, Mapping):
            raise UsageError(f"{name}: the section {key!r} must hold options, one `name: value` a line, not {value!r}.")
        for option, inner in (value or {}).items():
            if option == "base":
                raise UsageError(
                    f"{name}: `base: {inner}` stands in the section {key!r}. Move it to the top of the file, beside "
                    "the sections: a recipe builds on another as a whole."
                )
            if option in VERBS and isinstance(inner, Mapping):
                raise UsageError(
                    f"{name}: the section {option!r} stands in the section {key!r}. Move it to the top level."
                )
    options: dict[str, Any] = {}
    for section in sections:
        options |= _with_underscores(name, content.get(section) or {})
    return options


def _with_underscores(name: str, content: Mapping[Any, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for key, value in content.items():
        option = str(key).replace("-", "_")
        if option in options:
            raise UsageError(
                f"{name}: {option!r} is set twice, with dashes and with underscores. Remove one of the two."
            )
        options[option] = value
    return options


def write_recipe(folder: str | Path, options: Sequence[Any], **also: Any) -> None:
    """Write what a run was asked for into its folder, as a recipe: `--config` with it gives the same run.

    Args:
        folder: Folder of the run. It is created if it does not exist.
        options: Objects of option classes. Values that equal their default are left out, as are the paths of data and
            output; of other local paths the last part is kept.
        also: Options that replace theirs. None removes an option.
    """
    recipe: dict[str, Any] = {}
    for part in options:
        for option in dataclasses.fields(part):
            made = option.default_factory
            default = _plain(option.default if made is dataclasses.MISSING else made())
            value = _plain(getattr(part, option.name))
            # transformers replaces some empty defaults by other empty values, and `none` by an empty list.
            is_default = value == default or (not value and default in (None, "", "none", ["none"]))
            if option.name in _NOT_OF_THE_RUN or is_default or _is_of_the_machine(part, option.name):
                continue
            recipe[option.name] = value
    recipe = {name: value for name, value in (recipe | also).items() if value is not None}
    Path(folder).mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    write_text(Path(folder) / WRITTEN_RECIPE, text)


def _plain(value: Any) -> Any:
    """Return a value as a recipe holds it: enumerations as text, configurations as what differs, no local folders."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        name, equals, path = value.partition("=")  # a set that is named by NAME=FOLDER
        return name + equals + public_name(path) if path else public_name(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "to_dict"):  # accelerator_config
        return {name: item for name, item in value.to_dict().items() if item != getattr(type(value)(), name)} or None
    return value


def _is_of_the_machine(part: Any, name: str) -> bool:
    """Whether an option has been set because there is no accelerator here."""
    if name == "use_cpu":
        return int(os.environ.get("WORLD_SIZE", "1")) > 1
    if name == "dataloader_pin_memory":
        return part.device.type == "cpu"
    return False


def _recipe_path(name: str, above: Path | None = None) -> Path:
    """The file of a recipe, which the recipe in the file `above` may name as its base."""
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") or Path(name).is_file() else RECIPES / f"{name}.yaml"
    if above is not None and (above.parent / name).is_file():
        return above.parent / name
    if not path.is_file() and path.parent.name == RECIPES.name:
        path = RECIPES / path.name
    if not path.is_file():
        wanted = f"{above}: there is no recipe {name!r} to build on" if above else f"There is no recipe {name!r}"
        reason = "that is a folder, not a file" if Path(name).is_dir() else "neither a file"
        raise UsageError(f"{wanted}: {reason} nor one of {', '.join(recipe_names())}.")
    return path


def _set_defaults(
    parser: argparse.ArgumentParser, options: Mapping[str, Any], recipe: str, verb: str, mappings: Collection[str]
) -> None:
    """Make the options of a recipe the defaults of a parser; `mappings` are the options that may hold a mapping."""
    actions = {action.dest: action for action in reversed(parser._actions)}  # --name before --no-name
    for name, value in options.items():
        if name not in actions or name in ("config", "help"):
            close = difflib.get_close_matches(name, actions, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else f" See: biomedclip {verb} --help"
            raise UsageError(f"{recipe}: {name!r} is not an option of biomedclip {verb}.{hint}")
        action = actions[name]
        action.required = False
        takes_list = action.nargs in ("*", "+")
        if isinstance(value, Mapping):
            if name not in mappings:
                raise UsageError(f"{recipe}: {name} takes a value, not the mapping {dict(value)!r}.")
        elif isinstance(value, list) and not takes_list:
            if action.type is not str:
                raise UsageError(f"{recipe}: {name} takes one value, not the list {value!r}.")
            value = ",".join(map(str, value))  # such as `pmcids`, which the command line separates by commas
        elif isinstance(value, list):
            value = [_converted(parser, action, item, recipe, name) for item in value]
        elif value is not None:
            value = _converted(parser, action, value, recipe, name)
            value = [value] if takes_list else value
        parser.set_defaults(**{name: value})


def _converted(parser: argparse.ArgumentParser, action: argparse.Action, value: Any, recipe: str, name: str) -> Any:
    """Convert a value of a recipe as argparse converts the text of the command line (YAML reads 5e-4 as text)."""
    if value is False and "no" in (action.choices or []):
        value = "no"  # YAML reads a bare `no` as false
    if action.choices and value not in action.choices:
        raise UsageError(f"{recipe}: {name} must be one of {', '.join(map(str, action.choices))}, not {value!r}.")
    try:
        return parser._get_value(action, str(value))
    except argparse.ArgumentError as error:
        parser.error(f"{recipe}: {error}")


def _epilog(example: str, shown: Sequence[str] | None) -> str:
    rest = "\n\nEvery other field of transformers.TrainingArguments is an option too." if shown is not None else ""
    return f"example:\n  {example}{rest}"

"""Read the options of a verb from a recipe and the command line. The command line overrides the recipe."""

import argparse
import dataclasses
import json
import math
import os
import re
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from biomedclip.model_cards.formatting import public_name
from biomedclip.processing.files import write_text

from ..main import TRUST_OPTION, VERBS
from .errors import UsageError, set_option_names, suggestion, usage_errors
from .fields import WORKERS
from .yaml_files import read_yaml


RECIPES = Path(__file__).parents[1] / "recipes"
WRITTEN_RECIPE = "recipe.yaml"  # the recipe that a run writes to its folder
# Help texts of fields of TrainingArguments that replace those of transformers.
_TEXTS = {
    "output_dir": "Folder for the model, the checkpoints and the results.",
    "max_steps": "Number of steps. Overrides --num-train-epochs.",
    "num_train_epochs": "Number of epochs (default: 3).",
    "per_device_train_batch_size": "Batch size of a process in training (default: 8).",
    "per_device_eval_batch_size": "Batch size of a process in evaluation (default: 8).",
    "gradient_accumulation_steps": "Number of batches per step (default: 1).",
    "warmup_steps": "Steps of linear warmup. Below 1: fraction of all steps.",
    "bf16": "Train in bfloat16 mixed precision.",
    "torch_compile": "Compile the model with torch.compile.",
    "seed": "Random seed (default: 42).",
    "dataloader_num_workers": "Processes that load data (default: 4, or fewer cores).",
    "use_cpu": "Train on the CPU, even if there is a GPU.",
    "eval_strategy": "When to evaluate (default: no).",
    "eval_steps": "Steps between evaluations (--eval-strategy steps).",
    "save_steps": "Steps between checkpoints (default: 500).",
    "save_total_limit": "Maximum number of checkpoints to keep (default: all).",
    "logging_steps": "Steps between entries of the log (default: 500).",
}
_OTHER_FIELDS = """\
All other fields of transformers.TrainingArguments are options too. As in other
verbs, --device cpu (here --use-cpu true) and --precision bf16 (here --bf16
true) are accepted. Start one process for each GPU with torchrun."""
# Other names for values of options.
_ALIASES = {"precision": {"bf16": "bfloat16", "fp32": "float32"}}
_TRUE = ("true", "yes", "1", "t", "y")
_FALSE = ("false", "no", "0", "f", "n")
# An option, some of its values (None for any value), and the options that have no effect with these values. If the
# command line sets the first, the others are dropped from the recipe. If a recipe sets the first, the others are
# dropped from its base.
_WITHOUT_EFFECT: tuple[tuple[str, Collection[str] | None, str], ...] = (
    ("eval_strategy", ("no", "epoch"), "eval_steps"),
    ("eval_strategy", ("no",), "eval_delay load_best_model_at_end metric_for_best_model greater_is_better"),
    ("eval_strategy", ("no",), "max_eval_pairs per_device_eval_batch_size"),
    ("eval_strategy", ("no",), "zero_shot_data zero_shot_split zero_shot_templates"),
    ("save_strategy", ("no", "epoch", "best"), "save_steps"),
    ("save_strategy", ("no",), "save_total_limit"),
    ("logging_strategy", ("no", "epoch"), "logging_steps"),
    ("report_to", ("none",), "run_name project trackio_space_id trackio_bucket_id trackio_static_space_id"),
    ("gradient_checkpointing", _FALSE, "gradient_checkpointing_kwargs"),
    ("model_name_or_path", None, "tokenizer vocabulary_size"),
    ("text_model", None, "vocabulary_size"),
    ("tokenizer", None, "vocabulary_size"),
    ("fsdp", _FALSE, "fsdp_config"),
)
# Omitted from written recipes: paths that every run must set, secrets, and values that transformers derives.
_NOT_WRITTEN = frozenset(
    """
    train_data output_dir resume_from_checkpoint disable_tqdm hub_token local_rank do_train do_eval do_predict
    activation_checkpointing activation_checkpointing_kwargs trust_remote_code image_root
    """.split()
)


def parse_options(
    verb: str,
    option_classes: Sequence[type],
    arguments: Sequence[str],
    *,
    description: str = "",
    example: str = "",
    sections: Sequence[str] | None = None,
    groups: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    alternatives: Sequence[Sequence[str]] = (),
    positionals: Sequence[str] = (),
) -> tuple[Any, ...]:
    """Parse the options of a verb into an instance of each dataclass.

    `sections` are the sections of the recipe to read (default: that of the verb). `--help` lists the options of
    `groups`, which have a title and names with spaces between them (default: all options, in one group). `defaults` are
    values of options that neither the recipe nor the command line sets. `alternatives` are groups of options that
    exclude each other: if the command line sets one, the others of the group are dropped from the recipe. The values of
    `positionals` may be given without their names. One that is a list takes all remaining values, so it must be the
    last. Invalid options raise `UsageError`, or `SystemExit` if argparse rejects them.
    """
    parser = _parser(verb, option_classes, description, example, groups, positionals)
    actions = {action.dest: action for action in reversed(parser._actions)}  # `--name` before `--no-name`
    set_option_names(actions.keys() - {"config", "help"})
    required = [action.dest for action in parser._actions if action.required and action.option_strings]
    recipe = actions["config"].default
    for action in parser._actions:  # the dataclasses have the defaults
        if action.nargs in ("*", "+") and action.option_strings:
            action.__class__ = argparse._ExtendAction  # a repeated option adds values
        action.default, action.required = argparse.SUPPRESS, False
    given = _given(parser, verb, arguments, actions, positionals)

    options = dict(defaults or {})
    if recipe := given.get("config", recipe):
        dropped = _without_effect(given)
        dropped |= {name for group in alternatives if set(group) & given.keys() for name in group}
        for name, value in read_recipe(recipe, sections or [verb]).items():
            if name not in actions or name in ("config", "help"):
                hint = suggestion(name, [*actions, *VERBS]) or f" See: biomedclip {verb} --help"
                raise UsageError(f"{recipe}: {name!r} is not an option of biomedclip {verb}.{hint}")
            if name not in dropped:
                options[name] = _converted(parser, actions[name], value, recipe)
    options |= given
    if missing := [name for name in required if name not in options]:
        hint = ""
        lists = [_dashed(name) for name in given if actions[name].nargs in ("*", "+") and name not in positionals]
        if lists and set(missing) & set(positionals):
            first = " ".join(map(_placeholder, positionals))
            hint = f". All words after {lists[-1]} are its values. Put {first} first, or end the list with --"
        parser.error(f"missing {', '.join(map(_dashed, missing))}{hint}")
    try:
        return tuple(parser.parse_dict(options, allow_extra_keys=True))
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        # The dataclasses check their values when they are constructed. Those of transformers use several error types.
        raise UsageError(str(error)) from error


def _parser(
    verb: str,
    option_classes: Sequence[type],
    description: str,
    example: str,
    groups: Mapping[str, str] | None,
    positionals: Sequence[str],
) -> HfArgumentParser:
    parser = HfArgumentParser(
        option_classes,
        prog=f"biomedclip {verb}",
        description=textwrap.fill(description, 80),
        epilog=f"example:\n  {example}",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    several = {action.dest for action in parser._actions if action.nargs in ("*", "+")} & set(positionals)
    words = [f"{_placeholder(name)}{' ...' if name in several else ''}" for name in positionals]
    parser.usage = " ".join([f"biomedclip {verb}", *words, "[options]"])
    if "config" not in (action.dest for action in parser._actions):
        parser.add_argument("--config", metavar="RECIPE", help="YAML file, or a recipe that biomedclip recipes lists.")
    titles = {name: title for title, names in (groups or {}).items() for name in names.split()}
    listed = {"config", "help", *titles} if groups else {action.dest for action in parser._actions}
    is_part = any(action.dest not in listed for action in parser._actions)
    if is_part:
        parser.epilog = f"{parser.epilog}\n\n{_OTHER_FIELDS}"
        for action in parser._actions:
            action.help = _TEXTS.get(action.dest, action.help)
    _arrange(parser, titles)
    for action in parser._actions:
        if action.dest in _ALIASES:
            action.type = _with_aliases(action.type, _ALIASES[action.dest])
        if action.dest not in listed:
            action.help = argparse.SUPPRESS
        elif action.option_strings[-1].startswith("--no-"):
            action.help = f"Opposite of --{action.option_strings[-1].removeprefix('--no-')}."
        elif is_part and len(textwrap.wrap(action.help or "", 56)) > 2:
            action.help = (action.help or "").split(". ")[0].removesuffix(".") + "."  # transformers' texts are long
    return parser


def _arrange(parser: argparse.ArgumentParser, titles: Mapping[str, str]) -> None:
    """Move options to groups. `titles` has the group of each option, in the order of `--help`."""
    groups = {title: parser.add_argument_group(title) for title in dict.fromkeys(titles.values())}
    for name, title in titles.items():
        for action in [action for action in parser._optionals._group_actions if action.dest == name]:
            parser._optionals._group_actions.remove(action)
            groups[title]._group_actions.append(action)


def _with_aliases(read: Any, aliases: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a reader of values that accepts other names for them."""
    return lambda text: read(aliases.get(text, text))


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Show one spelling of an option, with dashes, and a short name for its value."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        option = action.option_strings[-1]
        choices = "|".join(map(str, action.choices)) if action.choices else None
        if action.nargs in (0, "?"):
            return f"{option} [{choices}]" if choices else option
        return f"{option} {choices or str(action.metavar or action.dest.split('_')[-1]).upper()}"


def _given(
    parser: argparse.ArgumentParser,
    verb: str,
    arguments: Sequence[str],
    actions: Mapping[str, argparse.Action],
    positionals: Sequence[str],
) -> dict[str, Any]:
    """Return the values of the options on the command line, and of the words without an option name."""
    several = bool(positionals) and actions[positionals[-1]].nargs in ("*", "+")
    words, named = _split(parser, arguments, math.inf if several else len(positionals))
    namespace, unknown = parser.parse_known_args(named)
    if unknown:
        name = unknown[0].split("=")[0]
        close = suggestion(name, [*map(_dashed, actions)])
        raise UsageError(f"The option {name} does not exist.{close} See: biomedclip {verb} --help")
    given, places = vars(namespace), len(positionals)
    values: list[Any] = [*words]
    if several and len(words) >= places:
        values = [*words[: places - 1], words[places - 1 :]]
    if len(values) > places:
        raise UsageError(f"{values[places]!r} does not belong to an option. See: biomedclip {verb} --help")
    for name, value in zip(positionals, values, strict=False):
        given[name] = _converted(parser, actions[name], value, f"biomedclip {verb}")
    return given


def _split(
    parser: argparse.ArgumentParser, arguments: Sequence[str], positionals: float
) -> tuple[list[str], list[str]]:
    """Return the words without an option name, and the options with their values.

    A list takes all words up to the next option or `--`. If it has choices, other words end it, such as MODEL in
    `--precision int8 MODEL OUT`, unless all positionals are given.
    """
    words: list[str] = []
    named: list[str] = []
    action, count = None, 0  # the option that takes the next word, and the number of its values so far
    for number, word in enumerate(arguments):
        if word == "--":
            words += arguments[number + 1 :]
            break
        name, equals, _ = word.partition("=")
        if name in parser._option_string_actions or re.fullmatch(r"-[^\d.\s]\S*", word):
            action, count = None if equals else parser._option_string_actions.get(name), 0
            named.append(word)
        elif action is not None and _takes(action, word, count, may_end=len(words) < positionals):
            named.append(word)
            count += 1
        else:
            action = None
            words.append(word)
    return words, named


def _takes(action: argparse.Action, word: str, count: int, *, may_end: bool) -> bool:
    """Return whether a word is a value of an option that has `count` values. `may_end`: a list may end before it."""
    if action.nargs in ("*", "+"):
        in_choices = action.choices is None or (action.type or str)(word) in action.choices  # type: ignore[operator]
        return in_choices or not count or not may_end
    if action.nargs == "?":  # a flag, or an option whose value can be left out
        if action.choices:
            return not count and (word in action.choices or not may_end)
        return not count and word.lower() in _TRUE + _FALSE
    return action.nargs is None and not count


def _dashed(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _placeholder(name: str) -> str:
    return name.upper().replace("_", "-")


def _converted(parser: argparse.ArgumentParser, action: argparse.Action, value: Any, source: str) -> Any:
    """Convert and check a value as argparse does for the option."""
    if isinstance(value, list):
        texts = [str(item) for item in value]
        texts = texts if action.nargs in ("*", "+") else [",".join(texts)]
    elif isinstance(value, Mapping):
        texts = [json.dumps(value)]
    else:  # YAML reads a bare `no` as false
        texts = ["no" if value is False and "no" in (action.choices or ()) else str(value)]
    try:
        return parser._get_values(action, texts)
    except argparse.ArgumentError as error:
        raise UsageError(f"{source}: {error}") from error


def _without_effect(options: Mapping[str, Any]) -> set[str]:
    """Return the options that have no effect in combination with the given ones."""
    dropped: set[str] = set()
    for option, values, names in _WITHOUT_EFFECT:
        value = options.get(option)
        value = value[0] if isinstance(value, list) and value else value
        text = "no" if value is False else str(value).lower()
        if value is not None and (values is None or text in values):
            dropped |= set(names.split())
    return dropped


def option_value(verb: str, name: str, arguments: Sequence[str]) -> str | None:
    """Return one option from the command line, or else from the recipe. Other options of the verb depend on it."""
    parser = argparse.ArgumentParser(prog=f"biomedclip {verb}", add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", nargs="?", const="true")
    known, _ = parser.parse_known_args(list(arguments))
    in_recipe = read_recipe(known.config, [verb]).get(name) if known.config else None
    return getattr(known, name) or in_recipe


def is_true(value: str | bool | None) -> bool:
    """Return whether the value of a flag, from the command line or a recipe, is true."""
    return str(value).lower() in _TRUE


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_recipe(name: str, sections: Sequence[str]) -> dict[str, Any]:
    """Read the options of a recipe.

    A recipe contains either options, or a section of options for each verb. With `base: NAME` at the top level, a
    recipe extends another one and contains only the differences. `null` resets an option of the base to its default.
    Later sections override earlier ones. `recipes/NAME.yaml` is a shipped recipe in any working directory.
    """
    options, found = _read_recipe(name, _recipe_path(name), sections, [])
    if found and not found & set(sections):
        wanted = " or ".join(f"`{section}:`" for section in sections)
        raise UsageError(
            f"{name} has no section {wanted}, so it would have no effect. Its sections are {', '.join(sorted(found))}."
        )
    return {key: value for key, value in options.items() if value is not None}


def find_recipes(name: str) -> list[tuple[Path, dict[str, Any]]]:
    """Return the files and contents of a recipe, of its base, of the base of this one, and so on."""
    path = _recipe_path(name)
    _read_recipe(name, path, [], [])  # checks the bases
    found = [(path, _load_yaml(name, path))]
    while base := found[-1][1].get("base"):
        path = _recipe_path(base, path)
        found.append((path, _load_yaml(base, path)))
    return found


def _read_recipe(
    name: str, path: Path, sections: Sequence[str], above: Sequence[Path]
) -> tuple[dict[str, Any], set[str]]:
    """Return the options of a recipe and its bases, and the names of their sections."""
    if path.resolve() in above:
        chain = " -> ".join(recipe.stem for recipe in [*above, path])
        raise UsageError(f"{name} extends itself: {chain}. Remove one of these lines `base:`.")
    content = _load_yaml(name, path)
    base = content.pop("base", None)
    options: dict[str, Any] = {}
    found: set[str] = set()
    if base is not None:
        if not isinstance(base, str):
            raise UsageError(f"{name}: base must be the name or file of one recipe, not {base!r}.")
        options, found = _read_recipe(base, _recipe_path(base, path), sections, [*above, path.resolve()])
    if content.keys() & VERBS.keys():
        for key, value in content.items():
            if key not in VERBS:
                hint = suggestion(key, VERBS) or " Move it into a section."
                raise UsageError(f"{name}: {key!r} is not a section. Sections are {', '.join(VERBS)}.{hint}")
            if not isinstance(value, Mapping | None):
                raise UsageError(f"{name}: the section {key!r} must contain `name: value` lines, not {value!r}.")
        found = found | content.keys()
        content = {key: value for section in sections for key, value in (content.get(section) or {}).items()}
    elif content:
        found = found | set(sections)  # options without sections apply to every verb
    own = {str(key).replace("-", "_"): value for key, value in content.items()}
    if "trust_remote_code" in own:
        raise UsageError(f"{name}: a recipe cannot set trust_remote_code. Pass {TRUST_OPTION} to the command.")
    dropped = _without_effect(own)
    return {key: value for key, value in options.items() if key not in dropped} | own, found


def _recipe_path(name: str, above: Path | None = None) -> Path:
    """Return the file of a recipe. `above` is the recipe that extends it."""
    shipped = Path(name).stem if Path(name).parent.name == RECIPES.name else name
    beside = [above.parent / name] if above else []
    for path in (*beside, Path(name), RECIPES / f"{shipped}.yaml"):
        if path.is_file():
            return path
    where = f"{above}: " if above else ""
    kind = "a folder, not a file" if Path(name).is_dir() else "neither a file nor one of the shipped recipes"
    close = suggestion(shipped, recipe_names())
    raise UsageError(f"{where}the recipe {name!r} was not found. It is {kind}.{close} See: biomedclip recipes")


def _load_yaml(name: str, path: Path) -> dict[str, Any]:
    with usage_errors():
        content = read_yaml(path, name)
    if not isinstance(content, Mapping):
        found = "is empty" if content is None else f"contains a {type(content).__name__}"
        raise UsageError(f"{name} {found}. A recipe must contain `name: value` lines.")
    return {str(key): value for key, value in content.items()}


def write_recipe(folder: str | Path, options: Sequence[Any], **also: Any) -> None:
    """Write the options of a run as a recipe. Pass the recipe to `--config` to repeat the run.

    Defaults and the paths of data and output are omitted. For other local paths, only the last component is written.
    `also` overrides `options`. None removes an option.
    """
    recipe: dict[str, Any] = {}
    for part in options:
        for option in dataclasses.fields(part):
            factory = option.default_factory
            default = _plain(option.default if factory is dataclasses.MISSING else factory())
            value = _plain(getattr(part, option.name))
            # transformers replaces some empty defaults with other empty values, and `none` with an empty list.
            is_default = value == default or (not value and default in (None, "", "none", ["none"]))
            if option.name not in _NOT_WRITTEN and not is_default and not _depends_on_machine(part, option.name):
                recipe[option.name] = value
    recipe = {name: value for name, value in (recipe | also).items() if value is not None}
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_text(Path(folder) / WRITTEN_RECIPE, yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))


def _plain(value: Any) -> Any:
    """Convert a value to a form that a recipe can contain."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        name, equals, path = value.partition("=")  # NAME=FOLDER
        return name + equals + public_name(path) if path else public_name(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "to_dict"):  # accelerator_config
        return {name: item for name, item in value.to_dict().items() if item != getattr(type(value)(), name)} or None
    return value


def _depends_on_machine(part: Any, name: str) -> bool:
    """Return whether an option has a value that depends on the accelerator and the cores of this machine."""
    if name == "use_cpu":
        return int(os.environ.get("WORLD_SIZE", "1")) > 1
    if name == "dataloader_num_workers":
        return getattr(part, name) == WORKERS
    return name == "dataloader_pin_memory" and part.device.type == "cpu"

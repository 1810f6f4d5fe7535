"""Read the options of a verb from a recipe and the command line. The command line overrides the recipe."""

import argparse
import dataclasses
import json
import os
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
from .errors import UsageError, set_option_names, suggestion
from .fields import WORKERS


RECIPES = Path(__file__).parents[1] / "recipes"
WRITTEN_RECIPE = "recipe.yaml"  # the recipe that a run writes to its folder
_POSITIONAL = "positional_"  # prefix of an option whose value is given without its name
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
true) are accepted. Start several processes, each on its GPU, with torchrun."""
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
# A written recipe leaves these out: paths that every run must set, secrets, and values that transformers derives.
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
    namespace, unknown = parser.parse_known_intermixed_args(_with_true(parser, arguments))
    if unknown:
        if not unknown[0].startswith("--"):
            raise UsageError(f"{unknown[0]!r} does not belong to an option. See: biomedclip {verb} --help")
        name = unknown[0].split("=")[0]
        close = suggestion(name, [f"--{action.replace('_', '-')}" for action in actions])
        raise UsageError(f"The option {name} does not exist.{close} See: biomedclip {verb} --help")
    given = vars(namespace)
    for name in positionals:
        if (value := given.pop(_POSITIONAL + name, None)) not in (None, []):
            given[name] = _converted(parser, actions[name], value, f"biomedclip {verb}")

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
    if missing := [f"--{name.replace('_', '-')}" for name in required if name not in options]:
        parser.error(f"missing {', '.join(missing)}")
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
    words = [f"{name.upper().replace('_', '-')}{' ...' if name in several else ''}" for name in positionals]
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
    for name in positionals:
        parser.add_argument(_POSITIONAL + name, nargs="*" if name in several else "?", help=argparse.SUPPRESS)
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
        if action.nargs in (0, "?"):
            return option
        value = str(action.metavar or action.dest.split("_")[-1]).upper()
        return f"{option} {'|'.join(map(str, action.choices)) if action.choices else value}"


def _with_true(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """Add `true` after each flag without a value. Otherwise argparse would take the next argument as its value."""
    flags = {name for action in parser._actions if action.nargs == "?" for name in action.option_strings}
    words = []
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        words.append(word)
        if word in flags and following.lower() not in _TRUE + _FALSE:
            words.append("true")
    return words


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
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_UniqueKeys)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{name}{line}: invalid YAML: {error.problem or error.context}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{name}: invalid YAML: {error}") from error
    if not isinstance(content, Mapping):
        found = "is empty" if content is None else f"contains a {type(content).__name__}"
        raise UsageError(f"{name} {found}. A recipe must contain `name: value` lines.")
    return {str(key): value for key, value in content.items()}


class _UniqueKeys(yaml.SafeLoader):
    """Reject repeated keys. PyYAML would keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if str(key.value).replace("-", "_") in seen:
                problem = f"the key {key.value!r} is repeated"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            seen.add(str(key.value).replace("-", "_"))
        return super().construct_mapping(node, deep=deep)


def write_recipe(folder: str | Path, options: Sequence[Any], **also: Any) -> None:
    """Write the options of a run as a recipe. Pass the recipe to `--config` to repeat the run.

    Defaults and the paths of data and output are left out. For other local paths, only the last component is written.
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

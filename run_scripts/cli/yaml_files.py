"""Read YAML files that a user writes. A repeated key is an error. PyYAML would keep its last value."""

from pathlib import Path
from typing import Any

import yaml

from biomedclip.processing.tables import read_text


class _UniqueKeys(yaml.SafeLoader):
    """Reject repeated keys. In recipes, `max-steps` and `max_steps` are the same key."""

    same_as_underscore = "-"

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = str(key.value).replace(self.same_as_underscore, "_")
            if name in seen:
                problem = f"the key {key.value!r} is repeated"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep=deep)


class _Texts(_UniqueKeys):
    """Read all values as text, such as `yes` and `007`."""

    yaml_implicit_resolvers = {}
    same_as_underscore = "_"


def read_yaml(path: Path, name: str, *, as_text: bool = False) -> Any:
    """Read a YAML file. `name` is the file in messages. With `as_text`, values such as `yes` and `007` are texts.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file is not valid YAML. The message contains the line number.
    """
    try:
        text = read_text(path)
        return yaml.load(text, Loader=_Texts) if as_text else yaml.load(text, Loader=_UniqueKeys)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{name}{line}: invalid YAML: {error.problem or error.context}.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: invalid YAML: {error}") from error

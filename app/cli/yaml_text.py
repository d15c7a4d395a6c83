"""The one reader of YAML: for configuration files and, through jsonargparse, for whatever is typed in brackets.

It reads 1e-3 as a number, as jsonargparse does, and refuses a key that stands twice, of which YAML would take the last.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

_load = get_loader("yaml")


class RepeatedKey(yaml.YAMLError):
    """A key stands twice in one mapping."""


def refuse_repeated(node: yaml.Node | None) -> None:
    """Raise RepeatedKey if a mapping in the node, at any depth, has a key twice."""
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in lines:
                raise RepeatedKey(f"{key.value} stands in line {lines[key.value]} and again in line {line}")
            lines[str(key.value)] = line
            children.append(value)
    for child in children:
        refuse_repeated(child)


def load(text: str) -> Any:
    """What a text in YAML holds; YAMLError if it is none, or has a key twice."""
    refuse_repeated(yaml.compose(text, Loader=yaml.SafeLoader))
    return _load(text)


def read_yaml(path: Path, option: str = "--config") -> dict[str, Any]:
    """The options in a YAML file; ValueError, naming the option that names the file, if there are none."""
    try:
        content = load(path.read_text(encoding="utf-8"))
    except RepeatedKey as error:
        raise ValueError(f"{option} {path}: {error}; leave one out") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{option} {path} is not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict | None) or any(not isinstance(key, str) for key in content or ()):
        raise ValueError(f"{option} {path} holds no options, such as `trainer: {{max_steps: 100}}`")
    return content or {}


set_loader("yaml", load, (yaml.YAMLError,))

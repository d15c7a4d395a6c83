"""Argument parsing shared by all verbs: a typed function or class becomes options, by jsonargparse."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from app.cli.groups import OptionGroup, split_groups
from app.cli.help import function_help
from app.cli.mistakes import ParserError, explained


class Parser(ArgumentParser):
    """jsonargparse's parser, raising ParserError instead of printing and exiting."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise ParserError."""
        raise ParserError(message, self) from ex


def positional_first(args: Sequence[str]) -> list[str]:
    """The arguments with those that belong to no option in front; every option has a value."""
    names: list[str] = []
    options: list[str] = []
    rest = iter(args)
    for arg in rest:
        if not arg.startswith("-"):
            names.append(arg)
        elif "=" in arg or arg in ("-h", "--help"):
            options.append(arg)
        else:
            options += [arg, *([value] if (value := next(rest, None)) is not None else [])]
    return names + options


def with_values(args: Sequence[str], flags: Collection[str]) -> list[str]:
    """The arguments with `--flag` as `--flag=true` where no value follows."""
    follows = [*args[1:], ""][: len(args)]
    bare = [arg in flags and value not in ("true", "false") for arg, value in zip(args, follows, strict=True)]
    return [f"{arg}=true" if is_bare else arg for arg, is_bare in zip(args, bare, strict=True)]


def with_dashes(args: Sequence[str], parser: ArgumentParser) -> list[str]:
    """The arguments with `--NAME VALUE` as `--NAME=VALUE` where the value begins with one dash and is no option."""
    actions = {option: action for action in parser._actions for option in action.option_strings}
    bound: list[str] = []
    for arg in args:
        is_value = arg.startswith("-") and not arg.startswith("--") and arg.partition("=")[0] not in actions
        if is_value and bound and bound[-1] in actions and actions[bound[-1]].nargs is None:
            bound[-1] += f"={arg}"
        else:
            bound.append(arg)
    return bound


def check_not_empty(values: Mapping[str, Any]) -> None:
    """Raise ValueError for the first option whose list is empty: that would mean nothing, or all, as by default."""
    for name, value in values.items():
        if value == []:
            raise ValueError(f"--{name} is empty; name at least one, or leave it out")


def call(function: Callable[..., int | None], verb: str, args: list[str]) -> int | None:
    """Call a typed function with options from the command line; its docstring is the help.

    A first parameter that is a list takes any number of arguments, such as RUNS…
    """
    parameters = inspect.signature(function).parameters
    groups = {name: p.default for name, p in parameters.items() if isinstance(p.default, OptionGroup)}
    if {"-h", "--help"} & set(args):
        print(function_help(verb, function, groups))
        return 0
    parser = Parser(prog=f"python -m app {verb}", allow_abbrev=False)
    named = [name for name, group in groups.items() if group.value is not None]
    for name in named:
        parser.add_argument(f"--{name}", type=str, default=groups[name].value)
    args = with_values(args, [f"--{name}" for name, p in parameters.items() if isinstance(p.default, bool)])
    first = next(iter(parameters.values()), None)
    kind = first and get_type_hints(function)[first.name]
    skip = set(groups)
    if first is not None and get_origin(kind) is list and first.default is first.empty:
        parser.add_argument(first.name, nargs="*", type=get_args(kind)[0])
        skip, args = skip | {first.name}, positional_first(args)
    names = parser.add_function_arguments(function, as_group=False, as_positional=True, skip=skip)
    can_be_left_out = first is not None and first.default is not first.empty and first.kind is not first.KEYWORD_ONLY
    if can_be_left_out and (args := positional_first(args)) and not args[0].startswith("-"):
        args = [f"--{first.name}", *args]  # jsonargparse has no positional argument that can be left out
    args, options = split_groups(args, groups)
    with explained(f"{parser.prog} --help"):
        config: Any = parser.parse_args(with_dashes(args, parser))
    check_not_empty({name: config[name] for name in names})
    values = {
        name: replace(group, value=config[name] if name in named else None, options=options[name])
        for name, group in groups.items()
    }
    return function(**{name: config[name] for name in names + sorted(skip - set(groups))}, **values)

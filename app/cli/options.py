"""Argument parsing shared by all verbs: a typed function or class becomes options, by jsonargparse."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from app.cli.help import documented, option_tables
from app.cli.mistakes import ParserError, explained


class Parser(ArgumentParser):
    """jsonargparse's parser, raising ParserError instead of printing and exiting; `listing` ends its help."""

    listing = ""

    def format_help(self, *formatter: Any) -> str:
        """The parser's own help, and the listing."""
        return super().format_help(*formatter) + self.listing

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise ParserError."""
        raise ParserError(message, self) from ex


@dataclass(frozen=True)
class OptionGroup:
    """The default of a parameter that takes `--NAME.option VALUE` beside, or in place of, `--NAME VALUE`.

    Args:
        value: Of `--NAME` itself; None if there is no such option.
        options: The arguments `--NAME.option VALUE` as they were typed; who knows what the value names parses them.
    """

    value: str | None = None
    options: tuple[str, ...] = ()


def split_groups(args: Sequence[str], groups: Collection[str]) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """Arguments that belong to no group, and those of each: `--GROUP.option=VALUE` or `--GROUP.option VALUE`."""
    others: list[str] = []
    found: dict[str, list[str]] = {group: [] for group in groups}
    rest = iter(args)
    for arg in rest:
        group, dot, _ = arg.removeprefix("--").partition(".")
        if not (arg.startswith("--") and dot and group in found):
            others.append(arg)
            continue
        found[group] += [arg] if "=" in arg else [arg, *([value] if (value := next(rest, None)) is not None else [])]
    return others, {group: tuple(options) for group, options in found.items()}


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


def call(function: Callable[..., int | None], verb: str, args: list[str]) -> int | None:
    """Call a typed function with options from the command line; its docstring is the help.

    A first parameter that is a list takes any number of arguments, such as RUNS…
    """
    description = (function.__doc__ or "").split("\n\n")[0]
    parser = Parser(prog=f"python -m app {verb}", description=description, allow_abbrev=False)
    parameters = inspect.signature(function).parameters
    groups = {name: p.default for name, p in parameters.items() if isinstance(p.default, OptionGroup)}
    texts = documented(inspect.getdoc(function) or "") if groups else {}
    for name in named(groups):
        parser.add_argument(f"--{name}", type=str, default=groups[name].value, help=texts.get(name))
    args = with_values(args, [f"--{name}" for name, p in parameters.items() if isinstance(p.default, bool)])
    first = next(iter(parameters.values()), None)
    kind = first and get_type_hints(function)[first.name]
    skip = set(groups)
    if first is not None and get_origin(kind) is list and first.default is first.empty:
        text = documented(inspect.getdoc(function) or "")[first.name]
        parser.add_argument(first.name, nargs="*", type=get_args(kind)[0], help=text)
        skip, args = skip | {first.name}, positional_first(args)
    names = parser.add_function_arguments(function, as_group=False, as_positional=True, skip=skip)
    can_be_left_out = first is not None and first.default is not first.empty and first.kind is not first.KEYWORD_ONLY
    if can_be_left_out and args and not args[0].startswith("-"):
        args = [f"--{first.name}", *args]  # jsonargparse has no positional argument that can be left out
    if groups and {"-h", "--help"} & set(args):
        unnamed = [f"--{name}.NAME: {texts.get(name, '')}\n" for name in groups if name not in named(groups)]
        parser.listing = "\n" + "\n".join([*unnamed, *option_tables(groups)])
    args, options = split_groups(args, groups)
    with explained(f"{parser.prog} --help"):
        config: Any = parser.parse_args(args)
    values = {name: OptionGroup(config[name] if name in named(groups) else None, options[name]) for name in groups}
    return function(**{name: config[name] for name in names + sorted(skip - set(groups))}, **values)


def named(groups: dict[str, OptionGroup]) -> list[str]:
    """The groups that are options themselves."""
    return [name for name, group in groups.items() if group.value is not None]

"""Argument parsing shared by all verbs: a typed function or class becomes options, and a mistake becomes one line.

jsonargparse reads the signatures; what it says of a mistake is cut down to the sentence that names the option, with
the nearest existing name beside an unknown one.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from app.cli.help import documented, option_tables


class UsageError(ValueError):
    """The command line cannot be understood."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name closest to `name`, `;` if there is none. Groups are compared first."""
    group, _, last = name.rpartition(".")
    siblings = {other.rpartition(".")[2]: other for other in known if other.rpartition(".")[0] == group}
    near = get_close_matches(last, siblings, n=1, cutoff=0.5) or [s for s in siblings if is_abbreviation(last, s)]
    if near:
        return f"; did you mean {siblings[near[0]]!r}?"
    near = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ";"


def check_known(option: str, kind: str, name: str, known: Collection[str]) -> None:
    """Raise ValueError, with the nearest name and all that there are, unless the name is one of them."""
    if name not in known:
        raise ValueError(f"{option} {name}: no such {kind}{nearest(name, known)} choose among {', '.join(known)}")


def is_abbreviation(short: str, name: str) -> bool:
    """Whether `short` begins each word of `name`, or the name itself: lr for learning_rate, max for max_steps."""
    return short == "".join(word[0] for word in name.split("_") if word) or name.startswith(short)


def option_names(parser: ArgumentParser) -> list[str]:
    """All options that the parser knows, `--` first, and positional arguments in capitals."""
    options = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    positional = [action.dest.upper() for action in parser._actions if not action.option_strings]
    return [option for option in options if not option.endswith("+")] + positional


def readable_types(text: str) -> str:
    """Types as people write them: <class 'int'> -> int, typing.Literal['a', 'b'] -> 'a', 'b'; None is left out."""
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"\1", text)
    return re.sub(r", NoneType|^\[|\]$", "", text)


def explain(message: str, known: Sequence[str], help_command: str) -> str:
    """One sentence out of a parser's message: the option, what is wrong with it, the nearest known name."""
    message = re.sub(r"\x1b\[[0-9;]*m", "", message)
    key = "--" + ".".join(re.findall(r'Parser key "([\w.]+)"', message))
    more = f" `{help_command}` lists the options"
    key = "" if key == "--" else key
    if unknown := re.search(r"[Uu]nrecognized arguments?: (\S+)", message):
        option = unknown.group(1).split("=")[0]
        return f"unknown option {option}{nearest(option, known)}{more}"
    if unknown := re.search(r"Option '(\w+)' is not accepted", message):
        option = f"{key}.{unknown.group(1)}"
        return f"unknown option {option}{nearest(option, known)}{more}"
    if unknown := re.search(r"Group '([\w.]+)' does not accept option '(\w+)'", message):
        option = f"--{unknown.group(1)}.{unknown.group(2)}"
        return f"unknown option {option}{nearest(option, known)}{more}"
    if unknown := re.search(r"Expected a dot import path string: (\S+)", message):
        return f"{key} {unknown.group(1)} does not exist{nearest(unknown.group(1), known)}{more}"
    if missing := re.search(r"arguments are required: (.*)", message):
        names = ", ".join(n.upper() if n.upper() in known else f"--{n}" for n in missing.group(1).split(", "))
        return f"missing: {names};{more}"
    given = re.search(r"(?:Got value|Given value): (.*)", message)
    if key and given:
        expected = re.search(r"Expected an? (.*)\. Got", message) or re.search(r"Subtypes: (.*)", message)
        kinds = readable_types(expected.group(1)) if expected else "another value"
        return f"{key} {given.group(1)} will not do; expected {kinds}"
    text = re.sub(r'Parser key "[\w.]+":', "", message)
    return (f"{key}: " if key else "") + " ".join(line.strip(" -") for line in text.splitlines()[:3] if line.strip())


class ParserError(ValueError):
    """What jsonargparse says of a mistake, with the options that its parser knows."""

    def __init__(self, message: str, parser: ArgumentParser) -> None:
        super().__init__(message)
        self.known = option_names(parser)


class Parser(ArgumentParser):
    """jsonargparse's parser, raising ParserError instead of printing and exiting; `listing` ends its help."""

    listing = ""

    def format_help(self, *formatter: Any) -> str:
        """The parser's own help, and the listing."""
        return super().format_help(*formatter) + self.listing

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise ParserError."""
        raise ParserError(message, self) from ex


@contextmanager
def explained(help_command: str, known: Iterable[str] = ()) -> Iterator[None]:
    """Turn a ParserError into a UsageError of one sentence; `known` are names beside the parser's own options.

    A constructor's own ValueError comes wrapped in jsonargparse's list of types tried: it is unwrapped.
    """
    try:
        yield
    except ParserError as error:
        raise UsageError(explain(str(error), [*error.known, *known], help_command)) from error
    except ValueError as error:
        ours = re.search(r"^\s*- (--.*)$", str(error), re.M)
        raise UsageError(ours.group(1) if ours else str(error)) from error


@dataclass(frozen=True)
class Group:
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
    groups: dict[str, Group] = {name: p.default for name, p in parameters.items() if isinstance(p.default, Group)}
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
    values = {name: Group(config[name] if name in named(groups) else None, options[name]) for name in groups}
    return function(**{name: config[name] for name in names + sorted(skip - set(groups))}, **values)


def named(groups: dict[str, Group]) -> list[str]:
    """The groups that are options themselves."""
    return [name for name, group in groups.items() if group.value is not None]

"""Argument parsing shared by all verbs: a typed function or class becomes options, and a mistake becomes one line.

jsonargparse reads the signatures; what it says of a mistake is cut down to the sentence that names the option, with
the nearest existing name beside an unknown one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any, NoReturn

from jsonargparse import ArgumentParser


class UsageError(ValueError):
    """The command line cannot be understood."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name closest to `name`, or an empty string."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def option_names(parser: ArgumentParser) -> list[str]:
    """All options that the parser knows, `--` first."""
    return [option for action in parser._actions for option in action.option_strings if option.startswith("--")]


def explain(message: str, known: Iterable[str], help_command: str) -> str:
    """One sentence out of a parser's message, the nearest known option added for an unknown one."""
    message = re.sub(r"\x1b\[[0-9;]*m", "", message)
    unknown = re.search(r"unrecognized arguments?: (\S+)", message, re.I) or re.search(
        r"[Uu]nrecognized (?:key|option)s?:? '?(\S+?)'?$", message
    )
    if unknown:
        option = unknown.group(1).split("=")[0]
        return f"unknown option {option}{nearest(option, known)} `{help_command}` lists the options"
    key = re.search(r'(?:Parser key|Validation failed for key) "([\w.]+)"', message)
    given = re.search(r"Given value: (.*)", message)
    if key and given:
        expected = re.search(r"(?:Expected|Subtypes):? (.*)", message)
        return (
            f"--{key.group(1)}: {given.group(1)!r} will not do{'; expected ' + expected.group(1) if expected else ''}"
        )
    return " ".join(line.strip(" -") for line in message.splitlines()[:3] if line.strip())


class Parser(ArgumentParser):
    """jsonargparse's parser, raising UsageError instead of printing and exiting."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise UsageError with one sentence."""
        raise UsageError(explain(message, option_names(self), f"{self.prog} --help")) from ex


def call(function: Callable[..., int | None], verb: str, args: list[str]) -> int | None:
    """Call a typed function with options from the command line; its docstring is the help."""
    parser = Parser(prog=f"python -m app {verb}", description=(function.__doc__ or "").split("\n\n")[0])
    names = parser.add_function_arguments(function, as_group=False, as_positional=True)
    config: Any = parser.parse_args(args)
    return function(**{name: config[name] for name in names})

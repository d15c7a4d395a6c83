"""One line for each mistake: what a parser says of an option is cut down to the sentence that names it.

The nearest existing name stands beside an unknown one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import groupby
from typing import NamedTuple

from jsonargparse import ArgumentParser


class UsageError(ValueError):
    """The command line cannot be understood."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name closest to `name`, `;` if there is none. Groups are compared first."""
    others = [other for other in known if other not in (name, "--help")]
    group, _, last = name.rpartition(".")
    siblings = {other.rpartition(".")[2]: other for other in others if other.rpartition(".")[0] == group}
    near = get_close_matches(last, siblings, n=1, cutoff=0.5) or [s for s in siblings if is_abbreviation(last, s)]
    if near or siblings:
        return f"; did you mean {siblings[near[0]]!r}?" if near else ";"
    near = get_close_matches(name, others, n=1, cutoff=0.5)
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
    text = re.sub(r"<class '([\w.]+)'>", r"\1", text)
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"\1", text)
    text = re.sub(r"(?<!')\b(?:\w+\.)+(\w+)\b", r"\1", text)
    return re.sub(r", NoneType|^\[|\]$", "", text)


class Complaint(NamedTuple):
    """What a parser says of one option: its name, `--` first, or empty; and the lines about it."""

    option: str
    text: str


def innermost(message: str) -> Complaint:
    """The option that a parser's message is about, and what it says of that.

    A parser tells all alternatives that it tried, indented below the options they belong to; what came furthest, the
    first of these, is what was meant.
    """
    enclosing: list[tuple[int, str]] = []
    deepest: list[tuple[int, str]] = []
    lines: list[str] = []
    for number, line in enumerate(message.splitlines()):
        indent = len(line) - len(line.lstrip(" -")) if number else -1
        enclosing = [(at, key) for at, key in enclosing if at < indent or not line.strip()]
        keys = re.findall(r'Parser key "([\w.]+)":', line)
        enclosing += [(indent, key) for key in keys]
        if keys and len(enclosing) > len(deepest):
            deepest, lines = list(enclosing), []
        if enclosing[: len(deepest)] == deepest:
            lines.append(re.sub(r'Parser key "[\w.]+":', "", line).strip(" -"))
    names = [name for name, _ in groupby(key for _, key in deepest)]
    names = names[1:] if names[:1] == ["config"] and len(names) > 1 else names  # YAML that names the option itself
    return Complaint("--" + ".".join(names) if names else "", "\n".join(filter(None, lines)))


def unknown_option(option: str, known: Sequence[str], more: str) -> str:
    """The sentence about an option that does not exist, at least not here."""
    if option in known:
        return f"unknown option {option} here: it belongs to another --{option[2:].partition('.')[0]};{more}"
    return f"unknown option {option}{nearest(option, known)}{more}"


def explain(message: str, known: Sequence[str], help_command: str) -> str:
    """One sentence out of a parser's message: the option, what is wrong with it, the nearest known name."""
    message = re.sub(r"\x1b\[[0-9;]*m", "", message)
    if ours := re.search(r"Call to compute_fn .* failed: (--.*)", message):
        return ours.group(1)
    option, text = innermost(message)
    more = f" `{help_command}` lists the options"
    if unknown := re.search(r"[Uu]nrecognized arguments?: (\S+)", message):
        return unknown_option(unknown.group(1).split("=")[0], known, more)
    if unknown := re.search(r"Option '(\w+)' is not accepted", text):
        return unknown_option(f"{option}.{unknown.group(1)}", known, more)
    if unknown := re.search(r"Group '([\w.]+)' does not accept option '(\w+)'", text):
        return unknown_option(f"--{unknown.group(1)}.{unknown.group(2)}", known, more)
    if unknown := re.search(r"Expected a dot import path string[^$]*NestedArg\(key='(\w+)'", text):
        return unknown_option(f"{option}.{unknown.group(1)}", known, more)
    if unknown := re.search(r"Expected a dot import path string: (\S+)", text):
        names = [name for name in known if not name.startswith("--")] if option in ("--model", "--data") else []
        return f"{option} {unknown.group(1)} does not exist{nearest(unknown.group(1), names)}{more}"
    if missing := re.search(r"arguments are required: (.*)", message):
        prefix = f"{option}." if option else "--"
        names = [n.upper() if n.upper() in known else prefix + n for n in missing.group(1).split(", ")]
        return f"missing: {', '.join(names)};{more}"
    if wanting := re.search(r"argument (--[\w.]+): expected one argument", message):
        return f"{wanting.group(1)} needs a value; one that begins with a dash is given as {wanting.group(1)}=VALUE"
    if whole := re.search(r"""Unable to load config ['"](.*)['"]\n?(.*)""", text):
        reason = f"{whole.group(1)} will not do; it takes options, as {option}.NAME VALUE:{more}"
        return f"{option}: {whole.group(2)}" if whole.group(2) else f"{option} {reason}"
    return about_value(option, text)


def about_value(option: str, text: str) -> str:
    """The sentence about a value that will not do."""
    given = re.search(r"(?:Got value|Given value): (.*)", text)
    if not (option and given):
        return (f"{option}: " if option else "") + " ".join(text.splitlines()[:3])
    if reason := re.search(r"Problem with given class_path '[\w.]+':\n(.*)", text):
        return f"{option}: {reason.group(1)}"
    expected = re.search(r"Expected an? (.*)\. Got", text) or re.search(r"Subtypes: (.*)", text)
    kinds = readable_types(expected.group(1)) if expected else "another value"
    return f"{option} {given.group(1)} will not do; expected {kinds}"


def unwrapped(message: str) -> str:
    """What a constructor says, out of a list of the types that were tried; any other message as it is."""
    if ours := re.search(r"^\s*- (--.*)$", message, re.M):
        return ours.group(1)
    reason = re.search(r"Errors:\n\s*- (?:Problem with .*\n\s*)?(.*)", message)
    kind = re.search(r"class_path[= ]'([\w.]+)'", message)
    return f"{kind.group(1)}: {reason.group(1)}" if reason and kind else message


class ParserError(ValueError):
    """What jsonargparse says of a mistake, with the options that its parser knows."""

    def __init__(self, message: str, parser: ArgumentParser) -> None:
        super().__init__(message)
        self.known = option_names(parser)


@contextmanager
def explained(help_command: str, known: Callable[[], Iterable[str]] = tuple) -> Iterator[None]:
    """Turn a ParserError into a UsageError of one sentence; `known()` are names beside the parser's own options.

    What a constructor says comes wrapped in jsonargparse's list of types tried: it is unwrapped.
    """
    try:
        yield
    except ParserError as error:
        raise UsageError(explain(str(error), [*error.known, *known()], help_command)) from error
    except ValueError as error:
        raise UsageError(unwrapped(str(error))) from error

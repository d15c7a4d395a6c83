"""One line for each mistake: what a parser says of an option is cut down to the sentence that names it.

The nearest existing name stands beside an unknown one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

from jsonargparse import ArgumentParser


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

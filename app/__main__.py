"""The command line `python -m app VERB …`: one table of verbs, each imported only when it is called."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path

from app.cli.invocation import carried_out, fail, quiet_if_asked
from app.machine import begin_in_utf8, keep_freed_memory

LIGHTNING_VERBS = {
    "fit": "train a model, or go on with --ckpt_path",
    "validate": "measure a checkpoint on the validation split",
    "test": "measure a checkpoint on the test split, slice by slice",
    "predict": "write a checkpoint's predictions on the test split to a file",
}
FUNCTION_VERBS = {
    "grow": "add parameter tokens to a checkpoint, its optimizer state included",
    "generate": "write text with a checkpoint, as a stream",
    "runs": "list runs: how far, how well, in which state, and how to go on",
    "bench": "measure speed, as ratios of things timed in turn",
    "scorecard": "measure models by nine requirements, against the one-layer Transformer",
    "compare": "train models on tasks under one budget, searched alike, and judge them",
    "scaling": "fit scaling laws to finished runs, with intervals and forecasts",
    "growth-study": "measure what growing saves against training from scratch, at equal total FLOPs",
    "report": "write Markdown with figures from studies",
    "gpu": "try on a GPU all that is done there, against the CPU, in one table",
    "demo": "train, grow and read a small TokenFormer on real text, in minutes",
}
FUNCTIONS = {  # where the function of a verb is, "module:name"
    "grow": "app.run.grow:grow",
    "generate": "app.run.generate:generate",
    "runs": "app.study.runs:runs",
    "bench": "app.benchmark.command:bench",
    "scorecard": "app.scorecard.command:scorecard",
    "compare": "app.compare.command:compare",
    "scaling": "app.scaling.command:scaling",
    "growth-study": "app.growth_study.command:growth_study",
    "report": "app.report.command:report",
    "gpu": "app.gpu.command:gpu",
    "demo": "app.run.demo:demo",
}


def overview() -> str:
    """The text of `python -m app --help`."""
    verbs = "\n".join(f"  {verb:<14}{line}" for verb, line in (LIGHTNING_VERBS | FUNCTION_VERBS).items())
    return (
        "usage: python -m app VERB [options]\n\n"
        "Greenhouse grows small language models with alternatives to attention.\n\n"
        f"verbs:\n{verbs}\n\n"
        "`python -m app VERB --help` lists a verb's options, `python -m app --version` tells the version.\n"
    )


def version() -> str:
    """The version in pyproject.toml, as Greenhouse is run from its checkout and is no installed package."""
    text = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    return str(tomllib.loads(text)["project"]["version"])


def run(verb: str, typed: list[str]) -> int:
    """Carry out one verb with the options that were typed; returns the exit code."""
    with quiet_if_asked(verb, typed) as args:
        if verb in LIGHTNING_VERBS:
            if {"-h", "--help"} & set(args):
                print(importlib.import_module("app.cli.help").fit_help(verb))
                return 0
            return int(importlib.import_module("app.run.fit").run(verb, args))
        return int(importlib.import_module("app.cli.options").call(function_of(verb), verb, args) or 0)


def function_of(verb: str) -> Callable[..., int | None]:
    """The typed function that carries out a verb which is not one of Lightning's."""
    module, _, name = FUNCTIONS[verb].partition(":")
    function: Callable[..., int | None] = getattr(importlib.import_module(module), name)
    return function


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: that of the process); returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(overview())
        return 0
    if args[0] == "--version":
        print(f"greenhouse {version()}")
        return 0
    verb = args[0]
    if verb not in LIGHTNING_VERBS | FUNCTION_VERBS:
        near = get_close_matches(verb, LIGHTNING_VERBS | FUNCTION_VERBS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return fail(f"unknown verb {verb!r}; {hint}`python -m app --help` lists them")
    keep_freed_memory()
    return carried_out(args, run)


if __name__ == "__main__":
    begin_in_utf8()
    sys.exit(main())

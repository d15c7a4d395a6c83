"""Help: the options of verbs, with what they do, what can be typed, and what they are by default.

The options of a class are its constructor's arguments; their lines come from the class docstring, their types and
defaults from the signature. Classes are read from the source: importing them takes longer than a person waits.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from shutil import get_terminal_size
from textwrap import wrap
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from app.cli.groups import OptionGroup
from app.cli.invocation import QUIET, TALKING

ROOT = Path(__file__).resolve().parents[2]
REQUIRED = inspect.Parameter.empty
EXAMPLES = {
    "fit": (
        "python -m app fit --model TokenFormer --data CharText --trainer.max_steps 500",
        "python -m app fit --config app/configs/experiment/shakespeare/tokenformer.yaml --seed_everything 2",
        "python -m app fit --ckpt_path last",
        "python -m app fit --model Transformer --data Copying --trainer.devices 2 --trainer.strategy ddp",
    ),
    "validate": ("python -m app validate --ckpt_path best",),
    "test": ("python -m app test --ckpt_path runs/demo/checkpoints/best.ckpt",),
    "predict": ("python -m app predict --ckpt_path best --trainer.limit_predict_batches 2",),
}
QUIET_LINE = (QUIET, "print only results, warnings and errors")
RUN_OPTIONS = (
    (
        "--config FILE",
        "YAML with any of these options; repeatable, read at its place on the line: what comes later wins",
    ),
    ("--print_config", "print the whole configuration, every option of Lightning's Trainer included, and stop"),
    ("--run_dir DIR", "folder of the run (default: runs/MODEL-DATA; a number is added if it is taken)"),
    (
        "--ckpt_path FILE|DIR|last|best",
        "checkpoint to start from, or the run folder that has it; brings its run's configuration and folder",
    ),
    ("--ckpt_path auto", "of fit: go on in the run's own folder if it has a checkpoint, else begin there"),
    ("--seed_everything N", "seed of initialisation, data order and growth (default: 1)"),
    QUIET_LINE,
)
MEASURED_OPTIONS = (  # of validate, test and predict
    ("--ckpt_path FILE|last|best", "checkpoint to measure; brings its run's configuration, the model's options too"),
    ("--run_dir DIR", "name of the run whose last or best checkpoint is meant (default: of all runs)"),
    ("--config FILE", "YAML with any of these options"),
    QUIET_LINE,
)
TRAINER_OPTIONS = (
    ("--trainer.max_steps N", "optimizer steps (default: 1000)"),
    ("--trainer.val_check_interval N", "batches between validations (default: 250)"),
    ("--trainer.accumulate_grad_batches N", "batches for each optimizer step"),
    ("--trainer.gradient_clip_val X", "largest gradient norm (default: 1.0)"),
    ("--trainer.log_every_n_steps N", "steps between logged points (default: 10)"),
)
MACHINE_OPTIONS = (
    ("--trainer.accelerator NAME", "cpu, gpu or auto"),
    ("--trainer.devices N", "processes on this machine"),
    ("--trainer.num_nodes N", "machines"),
    ("--trainer.strategy NAME", "ddp, or fsdp2 (parameters and optimizer state sharded)"),
    ("--trainer.precision NAME", "32-true, bf16-mixed, …"),
    (
        "--trainer.matmul_precision NAME",
        "products of float32 matrices: highest (default), high (a GPU takes TF32), or medium (bfloat16)",
    ),
)
TRAINER_HEADING = "Trainer (Lightning's; all others are accepted too, `fit --print_config` shows them)"
LIMITS = {"validate": "limit_val_batches", "test": "limit_test_batches", "predict": "limit_predict_batches"}


class Choice(NamedTuple):
    """An option that chooses a class: its name, where the classes are, their base, and the argument never typed."""

    key: str
    package: str
    base: str
    linked: str


CHOICES = (Choice("model", "models", "LanguageModel", "vocab_size"), Choice("data", "datamodules", "TaskData", "seed"))


class Group(NamedTuple):
    """Options of one class: a heading, their prefix, the package, the module in it, and the class."""

    heading: str
    prefix: str
    package: str
    module: str
    name: str


GROUPS = (
    Group("Recipe", "optim", "models", "optim", "Optim"),
    Group("Growth in the fit", "growth", "callbacks", "growth", "Growth"),
    Group("Text samples", "samples", "callbacks", "samples", "Samples"),
    Group("Checkpoints", "checkpoints", "callbacks", "checkpoints", "Checkpoints"),
)


class Option(NamedTuple):
    """One argument of a class or a function: its name, type, default and line of help.

    The type of what stands in the source alone is its text, where no meaning is known.
    """

    name: str
    kind: Any
    default: Any
    text: str

    def line(self, flag: str) -> tuple[str, str]:
        """The flag, and what it does, takes and is by default; what a text says of the default needs no repetition."""
        default = f", default: {typed(self.default)}"
        if self.default is REQUIRED or (self.default is None and "default" in self.text):
            default = ""
        return flag, f"{self.text.rstrip('.')} ({kind_in_words(self.kind)}{default})"


def kind_in_words(kind: Any) -> str:
    """A type as people call what they type: Literal['a', 'b'] -> 'a', 'b'; list[int] | None -> [int,...] or null."""
    args = get_args(kind)
    if get_origin(kind) is Literal:
        return ", ".join(map(repr, args))
    if get_origin(kind) in (list, tuple):
        return f"[{kind_in_words(args[0])},...]"
    if args:
        words = ["a list of them" if get_args(kind)[:1] == args[:1] else kind_in_words(kind) for kind in args]
        return f"{', '.join(words[:-1])} or {words[-1]}"
    names = {Path: "path", NoneType: "null"}
    return str(names.get(kind, getattr(kind, "__name__", kind)))


def typed(value: Any) -> str:
    """A value as people type it: (1, 2) -> [1,2], None -> null, True -> true."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(typed, value))}]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return repr(value) if isinstance(value, str) else str(value)


def statements(file: Path) -> list[ast.stmt]:
    """The statements at the top of a source file."""
    return ast.parse(file.read_text(encoding="utf-8")).body


def classes_in(file: Path) -> dict[str, ast.ClassDef]:
    """Classes defined at the top of a source file."""
    return {node.name: node for node in statements(file) if isinstance(node, ast.ClassDef)}


def documented(docstring: str) -> dict[str, str]:
    """Argument names and their lines in the `Args:` section of a docstring."""
    section = docstring.partition("Args:\n")[2]
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section, re.M)
    return {name: " ".join(text.split()) for name, text in entries}


def options_of(node: ast.ClassDef, package: str) -> list[Option]:
    """Options of a class: arguments of its constructor, or fields of a dataclass."""
    texts = documented(ast.get_docstring(node) or "")
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is None:
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
        found = [(ast.unparse(f.target), f.annotation, f.value) for f in fields]
    else:
        arguments = [*init.args.args[1:], *init.args.kwonlyargs]
        defaults = [*init.args.defaults, *init.args.kw_defaults]
        missing: list[ast.expr | None] = [None] * (len(arguments) - len(defaults))
        found = [(a.arg, a.annotation, value) for a, value in zip(arguments, [*missing, *defaults], strict=True)]
    return [
        Option(name, meaning(kind, package), meaning(value, package) if value else REQUIRED, texts.get(name, ""))
        for name, kind, value in found
    ]


def choices(package: str, base: str) -> dict[str, ast.ClassDef]:
    """Subclasses of `base` that `package` exports, in the order of their names."""
    source = (ROOT / package / "__init__.py").read_text(encoding="utf-8")
    exported = re.findall(r'"(\w+)"', source.partition("__all__")[2])
    found = {name: node for file in sorted((ROOT / package).rglob("*.py")) for name, node in classes_in(file).items()}

    def descends(name: str) -> bool:
        parents = [ast.unparse(parent) for parent in found[name].bases] if name in found else []
        return base in parents or any(map(descends, parents))

    return {name: found[name] for name in sorted(exported) if descends(name)}


@cache
def named_values(package: str) -> dict[str, str]:
    """Types and constants that the source names, models' and the package's own: Init -> Literal['zero_keys', …]."""
    files = [file for folder in ("models", package) for file in sorted((ROOT / folder).rglob("*.py"))]
    assigned = [node for file in files for node in statements(file) if isinstance(node, ast.Assign)]
    named = [node for node in assigned if isinstance(node.value, ast.Subscript | ast.Constant | ast.Tuple)]
    return {ast.unparse(node.targets[0]): ast.unparse(node.value) for node in named}


def meaning(node: ast.expr | None, package: str) -> Any:
    """The type or value that an expression of our source stands for; its text if that takes more than the source."""
    text = ast.unparse(node) if node else ""
    whole = re.sub(r"\b[A-Z]\w+\b", lambda name: named_values(package).get(name[0], name[0]), text)
    try:
        return eval(whole, {"Literal": Literal})
    except (NameError, SyntaxError):
        return text


def known_names() -> list[str]:
    """Names of all models and data, and their options: what a misspelt one may have meant."""
    found = [(choice, name, node) for choice in CHOICES for name, node in choices(choice.package, choice.base).items()]
    options = [f"--{c.key}.{o.name}" for c, _, node in found for o in options_of(node, c.package) if o.name != c.linked]
    return [name for _, name, _ in found] + options


def class_table(heading: str, prefix: str, package: str, node: ast.ClassDef, group: OptionGroup) -> list[str]:
    """Lines of help of the options of a package's class under `--prefix.`."""
    options = [option for option in options_of(node, package) if option.name not in group.ours]
    options = [option._replace(default=group.defaults.get(option.name, option.default)) for option in options]
    return _table(heading, [option.line(f"--{prefix}.{option.name}") for option in options])


def option_tables(groups: Mapping[str, OptionGroup]) -> list[str]:
    """Lines of help of all options `--PREFIX.NAME`, a table for each class that takes them."""
    parts = []
    for choice in CHOICES:
        if group := groups.get(choice.key):
            group = replace(group, ours=group.ours | {choice.linked})
            for name, node in choices(choice.package, choice.base).items():
                if group.kind in (None, name):
                    summary = (ast.get_docstring(node) or "").partition("\n")[0]
                    heading = f"--{choice.key} {name}: {summary}"
                    parts += class_table(heading, choice.key, choice.package, node, group)
    for heading, prefix, package, module, name in GROUPS:
        if group := groups.get(prefix):
            node = classes_in(ROOT / package / f"{module}.py")[name]
            parts += class_table(heading, prefix, package, node, group)
    return parts


def fit_help(verb: str) -> str:
    """The help of a Lightning verb: examples, then its options by group."""
    keys = [*(choice.key for choice in CHOICES), *(group.prefix for group in GROUPS)] if verb == "fit" else ["data"]
    training = TRAINER_OPTIONS if verb == "fit" else ((f"--trainer.{LIMITS[verb]} N", "batches of each slice"),)
    return "\n".join([
        f"usage: python -m app {verb} [options]\n",
        "examples:",
        *(f"  {example}" for example in EXAMPLES[verb]),
        "",
        *_table("Run", RUN_OPTIONS if verb == "fit" else MEASURED_OPTIONS),
        *option_tables(dict.fromkeys(keys, OptionGroup())),
        *_table(TRAINER_HEADING, (*training, *MACHINE_OPTIONS)),
    ])  # fmt: skip


def function_help(verb: str, function: Callable[..., Any], groups: Mapping[str, OptionGroup]) -> str:
    """The help of a verb that is a typed function, of its docstring and signature."""
    docstring, kinds = inspect.getdoc(function) or "", get_type_hints(function)
    texts = documented(docstring)
    lines: list[tuple[str, str]] = []
    places: list[tuple[str, str]] = []
    for name, parameter in inspect.signature(function).parameters.items():
        option = Option(name, kinds[name], parameter.default, texts.get(name, ""))
        if name in groups and groups[name].value is None:
            lines.append((f"--{name}.NAME", option.text.rstrip(".")))
        elif name in groups:
            lines.append(option._replace(kind=str, default=groups[name].value).line(f"--{name}"))
        elif parameter.default is not REQUIRED:
            lines.append(option.line(f"--{name}"))
        elif get_origin(option.kind) is list:
            places.append(option._replace(kind=get_args(option.kind)[0]).line(f"{name} ..."))
        else:
            places.append(option.line(name))
    lines += [QUIET_LINE] if verb in TALKING else []
    ends = ["[options]"] if lines else []
    usage = " ".join(["usage: python -m app", verb, *(name for name, _ in places), *ends])
    parts = [usage, "", " ".join(docstring.split("\n\n")[0].split()), ""]
    parts += _table("Arguments", places) if places else []
    return "\n".join([*parts, *(_table("Options", lines) if lines else []), *option_tables(groups)])


def _table(heading: str, lines: Sequence[tuple[str, str]]) -> list[str]:
    """A heading and its options, each text beside its option, within the width of the terminal if there is one."""
    indent = max((len(option) for option, _ in lines), default=0) + 4
    columns = max(get_terminal_size().columns, indent + 40) if sys.stdout.isatty() else None
    shown = (wrap(text, columns - indent, break_on_hyphens=False) if columns else [text] for _, text in lines)
    return [
        heading,
        *(
            f"  {option:<{indent - 2}}" + f"\n{'':<{indent}}".join(text)
            for (option, _), text in zip(lines, shown, strict=True)
        ),
        "",
    ]

"""Help for fit, validate, test and predict, read from the source: importing it takes longer than a person waits.

The options of a class are its constructor's arguments; their lines come from the class docstring, their types and
defaults from the signature, as jsonargparse would take them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
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
RUN_OPTIONS = (
    (
        "--config FILE",
        "YAML with any of these options; repeatable, read at its place on the line: what comes later wins",
    ),
    ("--print_config", "print the whole configuration, every option of Lightning's Trainer included, and stop"),
    ("--run_dir DIR", "folder of the run (default: runs/MODEL-DATA; a number is added if it is taken)"),
    ("--ckpt_path FILE|last|best", "checkpoint to start from; brings its run's configuration and folder"),
    ("--seed_everything N", "seed of initialisation, data order and growth (default: 1)"),
)
TRAINER_OPTIONS = (
    ("--trainer.max_steps N", "optimizer steps (default: 1000)"),
    ("--trainer.val_check_interval N", "batches between validations (default: 250)"),
    ("--trainer.accelerator NAME", "cpu, gpu or auto"),
    ("--trainer.devices N", "processes on this machine"),
    ("--trainer.num_nodes N", "machines"),
    ("--trainer.strategy NAME", "ddp, or fsdp2 (parameters sharded; cannot grow in the fit)"),
    ("--trainer.precision NAME", "32-true, bf16-mixed, …"),
    ("--trainer.accumulate_grad_batches N", "batches for each optimizer step"),
    ("--trainer.gradient_clip_val X", "largest gradient norm (default: 1.0)"),
    ("--trainer.log_every_n_steps N", "steps between logged points (default: 10)"),
)
CHOICES = (  # option, package, base class, argument that is never typed
    ("model", "models", "LanguageModel", "vocab_size"),
    ("data", "datamodules", "TaskData", "seed"),
)
GROUPS = (  # heading, prefix of the options, files to look in, class
    ("Recipe", "optim", "models/optim.py", "Optim"),
    ("Growth in the fit", "growth", "callbacks/growth.py", "Growth"),
    ("Text samples", "samples", "callbacks/samples.py", "Samples"),
    ("Checkpoints", "checkpoints", "callbacks/checkpoints.py", "Checkpoints"),
)


class Option(NamedTuple):
    """One argument of a class: its name, type, default (None: required or given by the data) and line of help."""

    name: str
    type: str
    default: str | None
    text: str


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


def options_of(node: ast.ClassDef) -> list[Option]:
    """Options of a class: arguments of its constructor, or fields of a dataclass."""
    texts = documented(ast.get_docstring(node) or "")
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is None:
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
        rows = [(ast.unparse(f.target), f.annotation, f.value) for f in fields]
    else:
        a = init.args
        positional = a.args[1:]
        missing: list[ast.expr | None] = [None] * (len(positional) - len(a.defaults))
        defaults = [*missing, *a.defaults, *a.kw_defaults]
        rows = [
            (arg.arg, arg.annotation, value) for arg, value in zip([*positional, *a.kwonlyargs], defaults, strict=True)
        ]
    return [
        Option(name, ast.unparse(kind) if kind else "", ast.unparse(value) if value else None, texts.get(name, ""))
        for name, kind, value in rows
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
    named = [node for node in assigned if isinstance(node.value, ast.Subscript | ast.Constant)]
    return {ast.unparse(node.targets[0]): ast.unparse(node.value) for node in named}


def readable_type(text: str, package: str) -> str:
    """An annotation or default with what its names stand for: Schedule -> 'cosine', 'wsd', 'constant'."""
    whole = re.sub(r"\b[A-Z]\w+\b", lambda name: named_values(package).get(name[0], name[0]), text)
    return re.sub(r"\bLiteral\[([^]]*)\]", r"\1", whole)


def known_names() -> list[str]:
    """Names of all models and data, and their options: what a misspelt one may have meant."""
    found = [(key, *item) for key, package, base, _ in CHOICES for item in choices(package, base).items()]
    linked = {key: name for key, _, _, name in CHOICES}
    options = [(key, option.name) for key, _, node in found for option in options_of(node)]
    return [name for _, name, _ in found] + [f"--{key}.{name}" for key, name in options if name != linked[key]]


def rows(prefix: str, package: str, node: ast.ClassDef, linked: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """Lines of help of the options of a package's class under `--prefix.`."""
    shown = [option for option in options_of(node) if option.name not in linked]
    types = [readable_type(o.type + (f", default: {o.default}" if o.default else ""), package) for o in shown]
    return [(f"--{prefix}.{o.name}", f"{o.text.rstrip('.')} ({kind})") for o, kind in zip(shown, types, strict=True)]


def option_tables(prefixes: Collection[str]) -> list[str]:
    """Lines of help of all options `--PREFIX.NAME`, a table for each class that takes them."""
    parts = []
    for key, package, base, linked in CHOICES:
        for name, node in choices(package, base).items() if key in prefixes else ():
            summary = (ast.get_docstring(node) or "").partition("\n")[0]
            parts += _table(f"--{key} {name}: {summary}", rows(key, package, node, (linked,)))
    for heading, prefix, file, name in GROUPS:
        if prefix in prefixes:
            parts += _table(heading, rows(prefix, file.partition("/")[0], classes_in(ROOT / file)[name]))
    return parts


def fit_help(verb: str) -> str:
    """The help of a Lightning verb: examples, then every option of the project by group."""
    parts = [f"usage: python -m app {verb} [options]\n", "examples:"]
    parts += [f"  {example}" for example in EXAMPLES[verb]]
    parts += ["", *_table("Run", RUN_OPTIONS)]
    parts += option_tables({key for key, *_ in CHOICES} | {prefix for _, prefix, *_ in GROUPS})
    parts += _table("Trainer (Lightning's; all others are accepted too, --print_config shows them)", TRAINER_OPTIONS)
    return "\n".join(parts)


def _table(heading: str, lines: tuple[tuple[str, str], ...] | list[tuple[str, str]]) -> list[str]:
    width = max((len(option) for option, _ in lines), default=0) + 2
    return [heading, *(f"  {option:<{width}}{text}" for option, text in lines), ""]

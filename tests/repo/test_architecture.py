"""Imports point one way, functions stay short, every module says what it is: read from the syntax trees."""

import ast
import graphlib
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MAY_IMPORT = {
    "app": {"app", "callbacks", "datamodules", "models"},
    "callbacks": {"callbacks", "models"},
    "datamodules": {"datamodules"},
    "models": {"models"},
}
GROUND = {"cli", "machine", "output", "stops"}
STUDIES = {"compare", "growth_study", "scaling"}
ROOMS = {  # of app, and which others each may import
    **dict.fromkeys(GROUND, GROUND),
    "benchmark": GROUND,
    "run": GROUND,
    "study": GROUND | {"run"},
    **dict.fromkeys(STUDIES, GROUND | {"study"}),
    "scorecard": GROUND | {"benchmark", "study"},
    "report": GROUND | {"study"} | STUDIES,
    "gpu": GROUND | {"benchmark"},
    "__main__": GROUND,  # it names the functions of verbs, and imports one when its verb is called
}
MAX_FILES = 10  # of a folder of app
MODELS_MAY_USE = {"lightning", "torch", "torchmetrics"}
LIGHTNING_INTERNALS = Path("callbacks/lightning_internals.py")  # all that is private to Lightning is in this file
PRIVATE_TO_OTHERS = {  # names that other files use all the same, and why
    "_actions": "argparse has no public list of a parser's options",
    "_embedding_bag_per_sample_weights_backward": "PyTorch has no public name for products of a vector and many rows",
    "_exit": "public: os._exit ends a child process without what its parent has set up",
    "_load_from_state_dict": "PyTorch's documented place for a module that sizes itself by what it loads",
    "_replace": "public, and underscored so that no field of a NamedTuple has its name",
}
MAX_FUNCTION_LINES = 60
UNFINISHED = re.compile(r"\b(TODO|FIXME|NotImplementedError)\b")

PATHS = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))
SOURCES = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in PATHS}
TREES = {path: ast.parse(source, filename=str(path)) for path, source in SOURCES.items()}


def module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in SOURCES}


def imported(path: Path, nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Yield every module that `nodes` of the file import, by absolute name: `a.b` for `from a import b` if b is one."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            anchor = list(path.parts[: len(path.parts) - node.level]) if node.level else []
            source = ".".join([*anchor, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{source}.{alias.name}" if f"{source}.{alias.name}" in MODULES else source


def all_imports(path: Path) -> set[str]:
    """Return every module a file imports, also inside functions: a circle broken by a late import is still one."""
    return set(imported(path, ast.walk(TREES[path])))


def offences(found: Iterator[str]) -> None:
    listed = list(found)
    assert not listed, "\n".join(listed)


def test_there_is_something_to_check():
    assert SOURCES


def test_our_packages_import_each_other_one_way_only():
    offences(
        f"{path} imports {name}"
        for path in SOURCES
        for name in sorted(all_imports(path))
        if (package := name.partition(".")[0]) in MAY_IMPORT and package not in MAY_IMPORT[path.parts[0]]
    )


def room(module: str) -> str:
    """The room of app that a module lies in: `study` for app.study.processes."""
    return module.split(".")[1]


def test_rooms_of_app_import_each_other_one_way_only():
    inside = {name: path for name, path in MODULES.items() if name.startswith("app.")}
    assert {room(name) for name in inside} == ROOMS.keys()
    offences(
        f"{path} imports {name}"
        for module, path in inside.items()
        for name in sorted(all_imports(path))
        if name.startswith("app.") and room(name) not in ROOMS[room(module)] | {room(module)}
    )


def test_folders_of_app_are_small():
    folders = [path for path in (ROOT / "app").rglob("*") if path.is_dir() and path.name != "__pycache__"]
    sizes = {folder.relative_to(ROOT): sum(p.stem != "__init__" for p in folder.glob("*.*")) for folder in folders}
    offences(f"{folder} has {size} files" for folder, size in sizes.items() if size > MAX_FILES)


def test_models_know_torch_and_lightning_only():
    allowed = MODELS_MAY_USE | {"models"} | set(sys.stdlib_module_names)
    offences(
        f"{path} imports {name}"
        for path in SOURCES
        if path.parts[0] == "models"
        for name in sorted(all_imports(path))
        if name.partition(".")[0] not in allowed
    )


def test_no_module_imports_itself_through_others():
    # Raises CycleError, which lists the circle.
    graphlib.TopologicalSorter(
        {name: all_imports(path) & (MODULES.keys() - {name}) for name, path in MODULES.items()}
    ).prepare()


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name != "_"


def defined_names(tree: ast.Module) -> Iterator[str]:
    """Yield every name that a file defines: functions, classes, variables and attributes of `self`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def used_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and name of every attribute, import and name as text (`getattr`) that a file uses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom | ast.Import):
            yield from ((node.lineno, part) for alias in node.names for part in alias.name.split("."))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            yield from ((node.lineno, name.value) for name in node.args[1:2] if isinstance(name, ast.Constant))


def test_what_is_private_to_others_is_used_in_one_file():
    rest = {path: tree for path, tree in TREES.items() if path != LIGHTNING_INTERNALS}
    allowed = {name for tree in rest.values() for name in defined_names(tree)} | PRIVATE_TO_OTHERS.keys()
    offences(
        f"{path}:{line} {name} is private to another library; {LIGHTNING_INTERNALS} is the place for Lightning's"
        for path, tree in rest.items()
        for line, name in used_names(tree)
        if is_private(name) and name not in allowed
    )


def private_methods(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield class and name of every private method of a class that has a base."""
    for cls in ast.walk(tree):
        if isinstance(cls, ast.ClassDef) and cls.bases:
            yield from ((cls.name, f.name) for f in cls.body if isinstance(f, ast.FunctionDef) and is_private(f.name))


def test_no_method_replaces_one_that_is_private_to_others():
    offences(
        f"{path}: {class_name}.{name} replaces what is private to {base.__module__}.{base.__name__}"
        for module, path in MODULES.items()
        for class_name, name in private_methods(TREES[path])
        for base in getattr(importlib.import_module(module), class_name).__mro__
        if path != LIGHTNING_INTERNALS and name not in PRIVATE_TO_OTHERS
        if base.__module__ not in MODULES and name in vars(base)
    )


def test_no_wildcard_imports():
    offences(
        f"{path}:{node.lineno}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    )


def test_the_command_line_starts_without_torch():
    heavy = {"lightning", "matplotlib", "tensorboard", "torch", "torchmetrics"}
    offences(
        f"{path} imports {name}"
        for path, tree in TREES.items()
        if path == Path("app/__main__.py")
        for name in imported(path, iter(tree.body))
        if name.partition(".")[0] in heavy
    )


def opens_text(node: ast.AST) -> bool:
    """Whether a call opens a file as text: `open`, or a path's `open`, `read_text` or `write_text`."""
    if not isinstance(node, ast.Call):
        return False
    is_binary = any(isinstance(a, ast.Constant) and isinstance(a.value, str) and "b" in a.value for a in node.args)
    if isinstance(node.func, ast.Attribute):
        is_path = ast.unparse(node.func.value) != "os"
        return node.func.attr in {"open", "read_text", "write_text"} and is_path and not is_binary
    return isinstance(node.func, ast.Name) and node.func.id == "open" and not is_binary


def test_whoever_opens_a_text_names_its_encoding():
    offences(
        f"{path}:{node.lineno} {ast.unparse(node)}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if opens_text(node) and all(keyword.arg != "encoding" for keyword in node.keywords)
    )


def test_functions_are_short():
    offences(
        f"{path}:{node.lineno} {node.name}: {length} lines"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (length := node.end_lineno - node.lineno + 1) > MAX_FUNCTION_LINES
    )


def test_every_module_has_a_docstring():
    offences(f"{path}" for path, tree in TREES.items() if not ast.get_docstring(tree))


def test_nothing_is_left_unfinished():
    offences(
        f"{path}:{number} {line.strip()}"
        for path, source in SOURCES.items()
        for number, line in enumerate(source.splitlines(), start=1)
        if UNFINISHED.search(line)
    )

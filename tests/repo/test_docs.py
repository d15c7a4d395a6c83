"""README.md and docs/ are true: commands run or parse, code runs, options, files and links exist, tables are whole."""

import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache, wraps
from hashlib import sha256
from pathlib import Path

import lightning as L
import pytest

import datamodules
import models
from app.__main__ import FUNCTION_VERBS, LIGHTNING_VERBS, function_of
from app.cli.help import fit_help
from datamodules.corpora import DOWNLOADS
from models.base import LanguageModel
from tests.app.test_cli import call

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
README = PAGES["README.md"]
EVERYTHING = "\n".join(PAGES.values())
PACKAGES = ("app", "models", "datamodules", "callbacks")
ADDED = {"RunningMean": "models/running_mean.py", "Parity": "datamodules/parity.py"}  # by the pages adding-a-*
FENCE = re.compile(r"^```(\S+)[ ]?(\S*)\n(.*?)^```$", re.M | re.S)
OPTION = re.compile(r"(?<![\w-])--([a-z]\w*(?:\.\w+)*(?:\.\*)?)")
PROGRAMS = ("python", "torchrun", "srun", "make", "tensorboard", "conda", "source", "git")


def fenced(page: str, language: str, mark: str) -> list[str]:
    """Contents of a page's blocks that open with "```language mark"."""
    return [body for found, name, body in FENCE.findall(PAGES[page]) if (found, name) == (language, mark)]


def prose(page: str) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", PAGES[page])


@cache
def commands(block: str) -> list[list[str]]:
    """The commands that bash would carry out, loops and functions expanded; it finds none but `PROGRAMS`.

    What is not quoted but must be, such as [1,2], fails here as it does in zsh.
    """
    stubs = "\n".join(f'{name}() {{ printf "%q " {name} "$@"; echo; }}' for name in PROGRAMS)
    process = subprocess.run(
        ["/bin/bash", "-c", f"set -euo pipefail; shopt -s failglob\n{stubs}\n{block}"], cwd=ROOT, text=True,
        env={"PATH": "", "NODE_RANK": "0", "MASTER_ADDR": "localhost"}, capture_output=True, timeout=60,
    )  # fmt: skip
    assert (process.returncode, process.stderr) == (0, ""), f"{process.stderr}\n{block}"
    return [shlex.split(line) for line in process.stdout.splitlines()]


def commands_of(page: str, *marks: str) -> list[list[str]]:
    """The commands in a page's blocks of these marks, in their order, and with the mark "" those in its sentences."""
    blocks = [block for mark in marks for block in fenced(page, "bash", mark)]
    inline = re.findall(r"`(python -m app [^`*]+)`", prose(page).replace("\n", " ")) if "" in marks else []
    return [command for block in [*blocks, *inline] for command in commands(block)]


def app_arguments(command: list[str]) -> list[str] | None:
    """What stands behind `-m app`, on whatever launcher's line; None for other programs."""
    return command[command.index("app") + 1 :] if command[1:] and "app" in command else None


# Commands -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder that has the project's files, to run commands in, with short texts as the published ones."""
    monkeypatch.chdir(tmp_path)
    for name in ("app", "results"):
        Path(name).symlink_to(ROOT / name)
    Path("data").mkdir()
    for name in ("tiny-shakespeare", "enwik8"):
        text = "".join(f"{number} times {number} is {number**2}.\n" for number in range(20_000)).encode()
        checked = {"num_bytes": len(text), "algorithm": "sha256", "checksum": sha256(text).hexdigest()}
        known = replace(DOWNLOADS[name], **checked)
        monkeypatch.setitem(DOWNLOADS, name, known)
        Path("data", known.filename).write_bytes(text)
    return tmp_path


def test_the_first_commands_run_one_after_the_other(folder):
    first, *others = commands_of("README.md", "test")
    process = subprocess.run(
        [sys.executable, *first[1:]], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert (process.returncode, process.stderr) == (0, "")
    run_here(others)
    assert {path.name for path in (folder / "runs").iterdir()} == {"first"}


@pytest.mark.parametrize("page", [page for page in PAGES if page != "README.md" and fenced(page, "bash", "test")])
def test_short_commands_run_one_after_the_other(folder, page):
    run_here(commands_of(page, "test"))


def run_here(recorded: list[list[str]]) -> None:
    """Run commands in this process, as each start of one takes seconds."""
    for command in recorded:
        code, out, err = call(shlex.join(app_arguments(command)))
        assert (code, err) == (0, ""), command
        assert out.strip(), command


def parsed_only(verb: str):
    """The function of a verb with the same signature and help, that does nothing."""
    return wraps(function_of(verb))(lambda *args, **kwargs: 0)


def configuration_line(arguments: list[str], before: list[str]) -> list[str]:
    """A call of fit that reads the same options: a checkpoint brings those of the run before it."""
    own, given = list(arguments[1:]), iter(arguments[1:])
    if "--ckpt_path" in own:
        own = [part for part in given if part != "--ckpt_path" or not next(given)]
        own = [*(before or ["--model", "TokenFormer", "--data", "CharText"]), *own]
    return own


@pytest.mark.parametrize("page", PAGES)
def test_long_commands_are_understood(folder, monkeypatch, page):
    fit: list[str] = []
    lines: dict[str, str] = {}  # what to call; commands that differ in numbers only stand for each other
    for command in commands_of(page, "test", ""):
        match command[0], app_arguments(command):
            case "make", _:
                (target,) = command[1:]
                assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M), command
            case _, [verb, *_] as arguments if verb in LIGHTNING_VERBS and "--help" not in arguments:
                options = configuration_line(arguments, fit)
                fit = options if verb == "fit" else fit
                line = f"fit {shlex.join(options)} --print_config"
                lines.setdefault(re.sub(r"(?<= )[\d.]\S*", "0", line), line)
            case _, [verb, *_] as arguments if verb in ("compare", "growth-study") and "--help" not in arguments:
                line = shlex.join([*arguments, *({"--print_commands"} - {*arguments})])
                lines[line] = line
            case _, list() as arguments:
                line = shlex.join(arguments)
                lines[line] = line
    monkeypatch.setattr(
        "app.__main__.function_of",
        lambda verb: function_of(verb) if verb in ("compare", "growth-study") else parsed_only(verb),
    )
    for line in lines.values():
        code, _, err = call(line)
        assert (code, err) == (0, ""), line
    assert not Path("runs").exists()


def test_every_committed_study_stands_beside_its_command():
    ours = {" ".join(command) for page in PAGES for command in commands_of(page, "")}
    for file in sorted((ROOT / "results").glob("*.json")):
        assert json.loads(file.read_text(encoding="utf-8"))["command"] in ours, file.name


# Code -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path) -> Path:
    """The packages, and the model and the task that the docs add to them."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for mark, (name, file) in zip(("model", "task"), ADDED.items(), strict=True):
        (source,) = fenced(f"docs/adding-a-{mark}.md", "python", mark)
        (tmp_path / file).write_text(source, encoding="utf-8")
        init = (tmp_path / file).with_name("__init__.py")
        before, names = init.read_text(encoding="utf-8").split("\n__all__ = [")
        module = file.removesuffix(".py").replace("/", ".")
        init.write_text(f'{before}from {module} import {name}\n\n__all__ = ["{name}", {names}', encoding="utf-8")
    return tmp_path


def run_code(program: str, folder: Path) -> str:
    """Run a program in a process that finds the packages in the folder; returns what it prints."""
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=120
    )  # fmt: skip
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout


def calls(page: str, mark: str) -> str:
    """Lines of Python that carry out the commands of a page's marked block, and stop at the first that fails."""
    lines = [app_arguments(command) for command in commands_of(page, mark)]
    assert lines
    return "\n".join(f"assert main({line}) == 0" for line in lines)


def test_the_added_model_streams_and_trains_from_the_command_line(copy):
    out = run_code(
        "import torch\nfrom app.__main__ import main\nfrom models import RunningMean\n"
        "model, tokens = RunningMean(vocab_size=7, d_model=8, num_layers=2), torch.randint(7, (2, 9))\n"
        "state, logits = model.init_state(2), []\n"
        "for token in tokens.unbind(1): logits.append((out := model.step(token, state))[0]); state = out[1]\n"
        "torch.testing.assert_close(torch.stack(logits, 1), model(tokens))\n"
        f"main(['fit', '--help'])\n{calls('docs/adding-a-model.md', 'model')}",
        copy,
    )
    assert "--model RunningMean: Layers of running means." in out
    assert "\nRunningMean, " in out
    assert (copy / "runs/RunningMean-CharText/checkpoints/last.ckpt").is_file()


def test_the_added_task_is_what_it_says_and_trains_from_the_command_line(copy):
    out = run_code(
        "import numpy as np\nfrom app.__main__ import main\nfrom datamodules.parity import parity_batch\n"
        "inputs, targets = parity_batch(0, 'test', 9, 0, np.arange(50))\n"
        "assert targets.tolist() == [[sum(row[: t + 1]) % 2 for t in range(9)] for row in inputs.tolist()]\n"
        "assert parity_batch(0, 'test', 9, 3, np.array([7]))[0].tolist() == inputs[7:8].tolist()\n"
        f"main(['fit', '--help'])\n{calls('docs/adding-a-task.md', 'task')}",
        copy,
    )
    assert "--data Parity: Say whether the number of ones so far is odd" in out
    record = json.loads((copy / "runs/SparseRNN-Parity/record.json").read_text(encoding="utf-8"))
    assert {f"test/exact_match/{length}" for length in (32, 64, 128)} <= record["test"].keys()


@pytest.mark.parametrize("file", ADDED.values())
def test_the_added_code_reads_like_ours(copy, file):
    for tool in (["ruff", "check", file], ["ruff", "format", "--check", file]):
        process = subprocess.run([sys.executable, "-m", *tool], cwd=copy, capture_output=True)
        assert process.returncode == 0, process.stdout.decode()


def test_the_library_code_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = fenced("docs/library.md", "python", "library")
    namespace: dict[str, object] = {}
    for block in blocks:
        formatted = subprocess.run(
            [sys.executable, "-m", "ruff", "format", "--config", ROOT / "pyproject.toml", "-"], input=block,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert formatted.stdout == block
        exec(compile(block, "docs/library.md", "exec"), namespace)
    assert len(blocks) >= 5
    assert not list(tmp_path.iterdir())


# Options --------------------------------------------------------------------------------------------------------------


@cache
def known_options() -> set[str]:
    """Every option of every verb, without dashes."""
    listed = set(re.findall(r"^  --([\w.]+)", fit_help("fit"), re.M))
    listed |= {f"trainer.{name}" for name in inspect.signature(L.Trainer).parameters}
    listed |= {name for verb in FUNCTION_VERBS for name in inspect.signature(function_of(verb)).parameters}
    return listed | {"help", "version", "model", "data"}


@pytest.mark.parametrize("page", PAGES)
def test_every_option_in_a_sentence_exists(page):
    for name in OPTION.findall(re.sub(r"`--signal=TERM@120`|`conda [^`]*`", "", prose(page))):
        if name.endswith(".*"):
            assert any(option.startswith(name[:-1]) for option in known_options()), name
        else:
            assert name in known_options(), f"{page} names --{name}, which does not exist"


def test_every_verb_model_and_task_in_a_command_exists():
    for verb in re.findall(r"-m app (\w[\w-]*)", EVERYTHING):
        assert verb in LIGHTNING_VERBS | FUNCTION_VERBS
    for name in re.findall(r"--model (\w+)", EVERYTHING):
        assert hasattr(models, name) or name in ADDED
    for name in re.findall(r"--data (\w+)", EVERYTHING):
        assert hasattr(datamodules, name) or name in ADDED


def test_growth_policies_and_their_defaults_are_those_of_the_code():
    from app.run.grow import grow
    from callbacks import Growth
    from models.growth import Carry, Init, TauPolicy

    for option, policies in (("init", Init), ("tau", TauPolicy), ("carry", Carry), ("rewarm_steps", None)):
        (row,) = re.findall(rf"^\| `{option}` \| (.*) \| (.*) \|$", PAGES["docs/growing.md"], re.M)
        if policies:
            assert set(re.findall(r"`(\w+)`", " ".join(row))) == set(policies.__args__)
        for function in (Growth, grow):
            assert row[0].startswith(f"`{inspect.signature(function).parameters[option].default}`")


# Tables and tree ------------------------------------------------------------------------------------------------------


def rows(text: str, heading: str) -> list[list[str]]:
    """Cells of the one table whose first column has this heading."""
    (table,) = re.findall(rf"^\| {heading} \|.*\n\|[-|: ]+\n((?:\|.*\n)+)", text, re.M)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]


def first_column(page: str, heading: str) -> set[str]:
    """Names in the first column of the table with this heading."""
    text = PAGES[page] if page != "README.md" else README[README.index("## Models and tasks") :]
    return {name for row in rows(text, heading) for name in re.findall(r"`([\w-]+)`", row[0])}


def test_tables_list_what_there_is():
    from app.benchmark.suite import BENCHMARKS

    assert first_column("README.md", "model") == {
        name for name in models.__all__ if issubclass(getattr(models, name), LanguageModel) and name != "LanguageModel"
    }
    tasks = {name: getattr(datamodules, name) for name in datamodules.__all__}
    base = datamodules.TaskData
    assert first_column("README.md", "task") == {
        name for name, kind in tasks.items() if issubclass(kind, base) and kind is not base
    }
    assert first_column("README.md", "verb") == {*LIGHTNING_VERBS, *FUNCTION_VERBS}
    assert first_column("docs/benchmarks.md", "benchmark") == {*BENCHMARKS, "mixers"}


def test_the_headline_table_is_that_of_the_results():
    results = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## Comparison: (\w+)\n(.*?)(?=^## )", results, re.M | re.S))
    measured = {task: {row[0]: row for row in rows(section, "model")} for task, section in sections.items()}
    (head,) = re.findall(r"^\| model \| (copying.*) \|$", README, re.M)
    tasks = [title.split(",")[0] for title in head.split(" | ")]
    ours = rows(README[: README.index("## Install")], "model")
    assert {name for name, *_ in ours} == set(measured["copying"])
    for name, *values in ours:
        for task, value in zip(tasks, values, strict=True):
            assert value == measured[task][name][7], f"{name} on {task}"


def test_the_answer_is_that_of_the_results():
    results = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    (answer,) = re.findall(r"^- (Growing TokenFormer .*?)\n- ", README, re.M | re.S)
    assert " ".join(answer.split()) in results


def tree_paths() -> list[Path]:
    """Paths in the annotated tree, by indentation."""
    (tree,) = fenced("README.md", "text", "tree")
    paths: list[Path] = []
    parent = Path()
    for line in tree.splitlines():
        name = line.split()[0]
        parent = parent if line.startswith(" ") else Path()
        paths.append(parent / name)
        parent = parent if line.startswith(" ") else Path(name)
    return paths


def test_the_tree_has_folders_that_exist():
    for path in tree_paths():
        assert (ROOT / path).is_dir(), f"README's tree has {path}, which is no folder"


def test_every_folder_of_code_is_in_the_tree():
    folders = {path.parent.relative_to(ROOT) for path in ROOT.glob("app/*/__init__.py")}
    assert {*folders, *map(Path, (*PACKAGES, "docs", "tests"))} <= set(tree_paths())


def test_every_annotation_is_there():
    (tree,) = fenced("README.md", "text", "tree")
    assert all(len(line.split(maxsplit=1)) == 2 for line in tree.splitlines())


# Files and links ------------------------------------------------------------------------------------------------------


def links(page: str) -> list[tuple[str, str]]:
    """(file, anchor) of a page's links into the project, the file relative to the root."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    inner = [target.partition("#") for target in targets if not re.match(r"https?://", target)]
    here = Path(page).parent
    return [(os.path.normpath(here / name) if name else page, anchor) for name, _, anchor in inner]


def anchors(page: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for file, anchor in links(page):
        assert (ROOT / file).exists(), f"{page} links to {file}, which does not exist"
        assert not anchor or anchor in anchors(file), f"{page} links to {file}#{anchor}, which is no heading"


def test_every_page_is_reached_from_the_readme():
    reached, new = {"README.md"}, {"README.md"}
    while new := {file for page in new for file, _ in links(page) if file in PAGES} - reached:
        reached |= new
    assert reached == set(PAGES)


def test_every_file_that_the_text_names_exists():
    named = re.findall(r"\b(?:app|models|datamodules|callbacks|tests|docs)/[\w/*.-]+\.(?:py|yaml|md)\b", EVERYTHING)
    assert named
    for name in {*named} - {*ADDED.values()}:
        assert list(ROOT.glob(name)), f"the docs name {name}, which does not exist"


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES)
def test_lines_are_short_outside_tables(page):
    for number, line in enumerate(PAGES[page].splitlines(), 1):
        assert len(line) <= 120 or line.startswith("|"), f"{page}:{number}"

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
import yaml

import datamodules
import models
from app.__main__ import FUNCTION_VERBS, LIGHTNING_VERBS, function_of
from app.cli.help import fit_help
from app.cli.names import model_names
from datamodules.corpora import DOWNLOADS, PYTHON_STDLIB, Corpus, load_corpus
from tests.app.forked import TIMEOUT
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
EXPERIMENT = "app/configs/experiment/copying/running_mean.yaml"  # of the added model
FENCE = re.compile(r"^```(\S+)[ ]?(\S*)\n(.*?)^```$", re.M | re.S)
OPTION = re.compile(r"(?<![\w-])--([a-z]\w*(?:\.\w+)*(?:\.\*)?)")
PLANNED = ("compare", "growth-study", "scorecard")  # verbs whose --print_commands checks a plan
VOCAB_SIZES = {"tiny-shakespeare": 65, "python-stdlib": 96}
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
        env={"PATH": "", "NODE_RANK": "0", "MASTER_ADDR": "localhost"}, capture_output=True, timeout=TIMEOUT,
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


stdlib = cache(load_corpus)


def load_once(corpus: str, data_dir: str) -> Corpus:
    """The corpus; the standard library is read by the first of the commands that needs it."""
    return stdlib(corpus, "data") if corpus == PYTHON_STDLIB else load_corpus(corpus, data_dir)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder that has the project's files, to run commands in, with short texts as the published ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datamodules.char_text.load_corpus", load_once)
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
        timeout=TIMEOUT,
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
        assert (code, re.sub(r"^prompt: .* a second\n", "", err)) == (0, ""), command  # how fast `generate` was
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


def lines_to_check(recorded: list[list[str]]) -> list[str]:
    """What to call so that the program checks these commands without carrying them out.

    Of commands of one run that differ in numbers only, the first stands for all.
    """
    fit: list[str] = []
    lines: dict[str, str] = {}
    for command in recorded:
        match app_arguments(command):
            case None:
                continue
            case [verb, *options] as arguments if verb in LIGHTNING_VERBS and "--help" not in options:
                options = configuration_line(arguments, fit)
                fit = options if verb == "fit" else fit
                line = f"fit {shlex.join(options)} --print_config"
                lines.setdefault(re.sub(r"(?<= )[\d.]\S*", "0", line), line)
            case [verb, *options] as arguments if verb in PLANNED and {"--help", "--print_commands"}.isdisjoint(
                options
            ):
                lines[shlex.join(arguments)] = f"{shlex.join(arguments)} --print_commands"
            case arguments:
                lines[shlex.join(arguments)] = shlex.join(arguments)
    return list(lines.values())


def assert_understood(recorded: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the program check the commands: options and their types, and whether a study's plan can be carried out."""
    monkeypatch.setattr(
        "app.__main__.function_of", lambda verb: function_of(verb) if verb in PLANNED else parsed_only(verb)
    )
    for line in lines_to_check(recorded):
        code, _, err = call(line)
        assert (code, err) == (0, ""), line
    assert not Path("runs").exists()


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_understood(folder, monkeypatch, page):
    assert_understood(commands_of(page, "test", ""), monkeypatch)


def test_make_knows_its_targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [command[1:] for page in PAGES for command in commands_of(page, "") if command[0] == "make"]
    assert targets
    for target in targets:
        assert re.search(rf"^{target[0]}:", makefile, re.M)


@pytest.mark.parametrize("folder_of_files", ["experiment", "recipe"])
def test_configuration_files_open_with_a_command_that_is_understood_and_hold_no_results(
    folder, monkeypatch, folder_of_files
):
    files = sorted((ROOT / "app/configs" / folder_of_files).rglob("*.yaml"))
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in files}
    openings = {file: re.match(r"(?:# python -m app .*\n)+", text)[0] for file, text in texts.items()}
    assert texts
    if folder_of_files == "experiment":
        assert all(re.search("^run_dir: runs/", text, re.M) for text in texts.values())
    opened = [c for opening in openings.values() for c in commands(opening.replace("# ", ""))]
    unread = [file for file, opening in openings.items() if f"--config {file}" not in opening]  # that of `demo`
    assert_understood([*opened, *(["python", "-m", "app", "fit", "--config", file] for file in unread)], monkeypatch)
    assert not [text for text in texts.values() if re.search(r"\bresult|±|bits/char", text, re.I)]


def test_experiment_files_tell_how_many_parameters_their_models_have():
    told = {}
    for file in sorted((ROOT / "app/configs/experiment").rglob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        if number := re.search(r"\b(\d+(?:,\d{3})+)\s(?:# )?parameters", text):
            model, data = (yaml.safe_load(text)[part] for part in ("model", "data"))
            vocab_size = VOCAB_SIZES[data["init_args"].get("corpus", "python-stdlib")]
            built = getattr(models, model["class_path"])(vocab_size=vocab_size, **model.get("init_args", {}))
            told[file.name, vocab_size] = int(number[1].replace(",", "")), built.num_parameters()
    assert len(told) > 10
    assert {name: told for name, (told, counted) in told.items() if told != counted} == {}


def test_every_committed_study_stands_beside_its_command():
    ours = {" ".join(command) for page in PAGES for command in commands_of(page, "")}
    for file in sorted((ROOT / "results").glob("*.json")):
        assert json.loads(file.read_text(encoding="utf-8"))["command"] in ours, file.name


# Code -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The packages, and the model and the task that the docs add to them."""
    folder = tmp_path_factory.mktemp("copy")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for mark, (name, file) in zip(("model", "task"), ADDED.items(), strict=True):
        (source,) = fenced(f"docs/adding-a-{mark}.md", "python", mark)
        (folder / file).write_text(source, encoding="utf-8")
        init = (folder / file).with_name("__init__.py")
        before, names = init.read_text(encoding="utf-8").split("\n__all__ = [")
        module = file.removesuffix(".py").replace("/", ".")
        init.write_text(f'{before}from {module} import {name}\n\n__all__ = ["{name}", {names}', encoding="utf-8")
    (experiment,) = fenced("docs/adding-a-model.md", "yaml", "model")
    (folder / EXPERIMENT).write_text(experiment, encoding="utf-8")
    return folder


STREAMS = """
import torch
from models import RunningMean
model, tokens = RunningMean(vocab_size=7, d_model=8, num_layers=2), torch.randint(7, (2, 9))
state, logits = model.init_state(2), []
for token in tokens.unbind(1):
    logits_BV, state = model.step(token, state)
    logits.append(logits_BV)
torch.testing.assert_close(torch.stack(logits, 1), model(tokens))
torch.testing.assert_close(model.prefill(tokens, model.init_state(2))[0], logits[-1])
"""
COUNTS = """
import numpy as np
from datamodules.parity import parity_batch
inputs, targets = parity_batch(0, "test", 9, 0, np.arange(50))
assert targets.tolist() == [[sum(row[: t + 1]) % 2 for t in range(9)] for row in inputs.tolist()]
assert parity_batch(0, "test", 9, 3, np.array([7]))[0].tolist() == inputs[7:8].tolist()
"""


@pytest.fixture(scope="module")
def printed(copy) -> str:
    """What one process prints in which the additions are tried, and the commands of their pages carried out."""
    pages = {mark: commands_of(f"docs/adding-a-{mark}.md", mark) for mark in ("model", "task")}
    assert all(pages.values())
    lines = [["fit", "--help"], *(app_arguments(command) for recorded in pages.values() for command in recorded)]
    run = "\n".join(f"assert main({line}) == 0" for line in lines)
    process = subprocess.run(
        [sys.executable, "-c", f"from app.__main__ import main{STREAMS}{COUNTS}{run}"], cwd=copy, capture_output=True,
        text=True, timeout=TIMEOUT,
    )  # fmt: skip
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout


def test_the_added_model_streams_and_trains_from_the_command_line(copy, printed):
    assert "--model RunningMean: Layers of running means." in printed
    assert "\nRunningMean, " in printed
    assert (copy / "runs/RunningMean-CharText/checkpoints/last.ckpt").is_file()


def test_the_added_model_is_compared_with_its_own_options_at_each_width(printed):
    for d_model, mean_width in ((32, 16), (128, 64)):
        assert f" --model.d_model={d_model} --model.mean_width={mean_width} " in printed


def test_the_added_task_is_what_it_says_and_trains_from_the_command_line(copy, printed):
    assert "--data Parity: Say whether the number of ones so far is odd" in printed
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
    from models.carry import Carry
    from models.growth import Init, LayerInit, TauPolicy

    policies_of = {"init": Init, "tau": TauPolicy, "carry": Carry, "layer_init": LayerInit}
    for option, policies in (policies_of | {"split_noise": None, "rewarm_steps": None}).items():
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

    assert first_column("README.md", "model") == set(model_names())
    tasks = {name: getattr(datamodules, name) for name in datamodules.__all__}
    base = datamodules.TaskData
    assert first_column("README.md", "task") == {
        name for name, kind in tasks.items() if issubclass(kind, base) and kind is not base
    }
    assert first_column("README.md", "verb") == {*LIGHTNING_VERBS, *FUNCTION_VERBS}
    assert first_column("docs/benchmarks.md", "benchmark") == {*BENCHMARKS, "mixers"}


def test_the_headline_table_is_that_of_the_results():
    results = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    found = re.findall(r"^## Comparison: (\w+)\n(.*?)(?=^## )", results, re.M | re.S)
    sections = dict(reversed(found))  # the first of each task
    (head,) = re.findall(r"^\| model \| (copying.*) \|$", README, re.M)
    tasks = [title.split(",")[0] for title in head.split(" | ")]
    measured = {task: {row[0]: row for row in rows(sections[task], r"model \| width")} for task in tasks}
    ours = rows(README[: README.index("## Install")], "model")
    assert {name for name, *_ in ours} == set(measured["copying"])
    for name, *values in ours:
        for task, value in zip(tasks, values, strict=True):
            row = measured[task].get(name)
            assert value == (row[7] if row else "–"), f"{name} on {task}"


def test_the_answer_is_that_of_the_results():
    results = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    (answer,) = re.findall(r"\*\*(TokenFormer, against .*?)\*\*", README, re.S)
    assert f"**{' '.join(answer.split())}**" in results


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
    others = (ROOT / name for name in ("Makefile", "requirements.txt", "pyproject.toml", "environment.yml", ".ci/run"))
    text = "\n".join([EVERYTHING, *(path.read_text(encoding="utf-8") for path in others)])
    named = re.findall(r"\b(?:app|models|datamodules|callbacks|tests|docs)/[\w/*.-]+\.(?:py|yaml|md)\b", text)
    assert named
    for name in {*named} - {*ADDED.values(), EXPERIMENT}:
        assert list(ROOT.glob(name)), f"the docs name {name}, which does not exist"


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES)
def test_lines_are_short_outside_tables(page):
    for number, line in enumerate(PAGES[page].splitlines(), 1):
        assert len(line) <= 120 or line.startswith("|"), f"{page}:{number}"

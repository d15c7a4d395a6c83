"""README.md is true: its commands run, its options and files exist, its tables list what there is."""

import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest

import datamodules
import models
from app.__main__ import FUNCTION_VERBS, LIGHTNING_VERBS, function_of
from app.cli.help import fit_help
from models.base import LanguageModel
from tests.app.test_cli import call

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGES = ("app", "models", "datamodules", "callbacks")
FENCE = re.compile(r"^```(\S+)[ ]?(\S*)\n(.*?)^```$", re.M | re.S)
OPTION = re.compile(r"(?<![\w-])--([a-z]\w*(?:\.\w+)*(?:\.\*)?)")


def fenced(language: str, mark: str) -> list[str]:
    """Contents of the blocks that open with "```language mark"."""
    return [body for found, name, body in FENCE.findall(README) if (found, name) == (language, mark)]


def commands(block: str) -> list[str]:
    """Lines of a shell block, continued ones joined."""
    return [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]


# Commands -------------------------------------------------------------------------------------------------------------


def test_short_commands_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, *rest = (command for block in fenced("bash", "test") for command in commands(block))
    process = subprocess.run(
        [sys.executable, *shlex.split(first)[1:]], env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (process.returncode, process.stderr) == (0, ""), first
    said = []
    for command in rest:  # in this process, as each start of one takes seconds
        code, out, err = call(command.removeprefix("python -m app "))
        assert (code, err) == (0, ""), command
        said.append(out)
    assert len(said) >= 4
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"first", "grown"}
    assert sum(text.count("grown before step") for text in said) == 2


@pytest.fixture
def copy_with_the_new_model(tmp_path) -> Path:
    """The packages, and the model that README adds to them."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (source,) = fenced("python", "model")
    (tmp_path / "models/running_mean.py").write_text(source, encoding="utf-8")
    init = tmp_path / "models/__init__.py"
    before, names = init.read_text(encoding="utf-8").split("\n__all__ = [")
    init.write_text(f'{before}from models.running_mean import RunningMean\n\n__all__ = ["RunningMean", {names}')
    return tmp_path


def test_the_added_model_streams_and_trains_from_the_command_line(copy_with_the_new_model):
    ((command,),) = map(commands, fenced("bash", "model"))
    program = (
        "import sys, torch\nfrom app.__main__ import main\nfrom models import RunningMean\n"
        "model, tokens = RunningMean(vocab_size=7, d_model=8, num_layers=2), torch.randint(7, (2, 9))\n"
        "state, logits = model.init_state(2), []\n"
        "for token in tokens.unbind(1): logits.append((out := model.step(token, state))[0]); state = out[1]\n"
        "torch.testing.assert_close(torch.stack(logits, 1), model(tokens))\n"
        "sys.exit(main(['fit', '--help']) + main(sys.argv[1:]))"
    )
    arguments = shlex.split(command.removeprefix("python -m app "))
    process = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=copy_with_the_new_model,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (process.returncode, process.stderr) == (0, "")
    assert "--model RunningMean: Layers of running means." in process.stdout
    assert "\nRunningMean, " in process.stdout
    assert (copy_with_the_new_model / "runs/RunningMean-CharText/checkpoints/last.ckpt").is_file()


def test_the_added_model_reads_like_the_others(copy_with_the_new_model):
    file = "models/running_mean.py"
    for tool in (["ruff", "check", file], ["ruff", "format", "--check", file]):
        process = subprocess.run([sys.executable, "-m", *tool], cwd=copy_with_the_new_model, capture_output=True)
        assert process.returncode == 0, process.stdout.decode()


# Options --------------------------------------------------------------------------------------------------------------


def known_options() -> set[str]:
    """Every option of every verb, without dashes."""
    listed = set(re.findall(r"^  --([\w.]+)", fit_help("fit"), re.M))
    listed |= {f"trainer.{name}" for name in inspect.signature(L.Trainer).parameters}
    return listed | {name for verb in FUNCTION_VERBS for name in inspect.signature(function_of(verb)).parameters}


def our_text() -> str:
    """README without the options of other programs: torchrun's own, sbatch's, tensorboard's."""
    text = re.sub(r"torchrun .*?-m app", "-m app", README.replace("\\\n", " "))
    text = re.sub(r"^#SBATCH .*$|^tensorboard --logdir|`--signal=TERM@120`|^conda .*$", "", text, flags=re.M)
    return text


def test_every_option_exists():
    options = known_options() | {"help", "model", "data"}
    for name in OPTION.findall(our_text()):
        if name.endswith(".*"):
            assert any(option.startswith(name[:-1]) for option in options), name
        else:
            assert name in options, f"README names --{name}, which does not exist"


def test_every_verb_model_and_task_in_a_command_exists():
    for verb in re.findall(r"-m app (\w[\w-]*)", README):
        assert verb in LIGHTNING_VERBS | FUNCTION_VERBS
    for name in re.findall(r"--model (\w+)", README):
        assert hasattr(models, name) or name == "RunningMean"
    for name in re.findall(r"--data (\w+)", README):
        assert hasattr(datamodules, name)


def test_every_option_and_its_value_in_a_function_verb_belongs_to_that_verb():
    for verb, line in re.findall(rf"-m app ({'|'.join(FUNCTION_VERBS)})\b(.*)", our_text()):
        function = function_of(verb)
        names = {name.partition(".")[0] for name in OPTION.findall(line)}
        assert names <= {*inspect.signature(function).parameters, "help"}


def test_growth_policies_and_their_defaults_are_those_of_the_code():
    from app.run.grow import grow
    from callbacks import Growth
    from models.growth import Carry, Init, TauPolicy

    for option, policies in (("init", Init), ("tau", TauPolicy), ("carry", Carry), ("rewarm_steps", None)):
        (row,) = re.findall(rf"^\| `{option}` \| (.*) \| (.*) \|$", README, re.M)
        if policies:
            assert set(re.findall(r"`(\w+)`", " ".join(row))) == set(policies.__args__)
        for function in (Growth, grow):
            assert row[0].startswith(f"`{inspect.signature(function).parameters[option].default}`")


# Tables and tree ------------------------------------------------------------------------------------------------------


def first_column(heading: str) -> set[str]:
    """Names in the first column of the table with this heading."""
    (table,) = re.findall(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", README, re.M)
    return {name for row in table.splitlines() for name in re.findall(r"`([\w-]+)`", row.split("|")[1])}


def test_tables_list_what_there_is():
    assert first_column("model") == {n for n in models.__all__ if issubclass(getattr(models, n), LanguageModel)}
    tasks = {name: getattr(datamodules, name) for name in datamodules.__all__}
    base = datamodules.TaskData
    assert first_column("task") == {name for name, kind in tasks.items() if issubclass(kind, base) and kind is not base}
    assert first_column("verb") == {*LIGHTNING_VERBS, *FUNCTION_VERBS}


def tree_paths() -> list[Path]:
    """Paths in the annotated tree, by indentation."""
    (tree,) = fenced("text", "tree")
    paths: list[Path] = []
    folder = Path()
    for line in tree.splitlines():
        name = line.split()[0]
        folder = folder if line.startswith(" ") else Path()
        paths.append(folder / name)
        folder = Path(name) if name.endswith("/") and not line.startswith(" ") else folder
    return paths


def test_everything_in_the_tree_exists():
    for path in tree_paths():
        assert (ROOT / path).exists(), f"README's tree has {path}, which does not exist"


def test_every_folder_of_code_is_in_the_tree():
    folders = {path.parent.relative_to(ROOT) for path in ROOT.glob("app/*/__init__.py")}
    assert {*folders, *map(Path, (*PACKAGES, "tests"))} <= set(tree_paths())


def test_every_annotation_is_there():
    (tree,) = fenced("text", "tree")
    assert all(len(line.split(maxsplit=1)) == 2 for line in tree.splitlines())


def test_every_file_that_the_text_names_exists():
    named = re.findall(r"\b(?:app|models|datamodules|callbacks|tests)/[\w/*.]+\.(?:py|yaml)\b", README)
    assert named
    for name in set(named) - {"models/running_mean.py"}:
        assert list(ROOT.glob(name)), f"README names {name}, which does not exist"


def test_lines_are_short_outside_tables():
    for number, line in enumerate(README.splitlines(), 1):
        assert len(line) <= 120 or line.startswith("|"), f"README.md:{number}"

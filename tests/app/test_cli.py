"""The command line as a user calls it: help, configuration, run folders, checkpoints, and one line for each mistake."""

import inspect
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml

from app.__main__ import FUNCTION_VERBS, LIGHTNING_VERBS, function_of, main
from app.cli.help import choices, known_names
from app.run.checkpoints import read_checkpoint
from tests.app.forked import ERRORS, OUTPUT, TIMEOUT, begin, end, tell, wait_for
from tests.app.growth_study.toys import study
from tests.app.run.test_resume import assert_same_run

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "app" / "configs"
RECIPES = sorted(CONFIGS.glob("recipe/*.yaml"))
MODELS = ("Palm", "PotatoLM", "SparseRNN", "TokenFormer", "TrajectoryLM", "Transformer")
SIZES = "--model.d_model 16 --model.num_heads 2 --model.num_param_tokens 4 --model.num_ffn_param_tokens 8"
TRAINER = "--trainer.accelerator cpu --trainer.max_steps 12 --trainer.val_check_interval 5 --samples.max_new_tokens 5"


class Outcome(NamedTuple):
    """What a call left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


class Console(StringIO):
    """Standard output that remembers what was there at each flush."""

    def __init__(self):
        super().__init__()
        self.flushed = []

    def flush(self):
        self.flushed.append(self.getvalue())


def call(line: str, out: StringIO | None = None) -> Outcome:
    """Run a command line in this process, as `python -m app LINE` would."""
    out, err, environment = out or StringIO(), StringIO(), dict(os.environ)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = main(shlex.split(line))
    except SystemExit as stop:  # --help and --print_config of jsonargparse
        code = int(stop.code or 0)
    finally:
        os.environ.clear()
        os.environ.update(environment)
    return Outcome(code, out.getvalue(), err.getvalue())


def start(line: str, folder: Path) -> subprocess.Popen:
    """Begin `python -m app LINE` in a folder, as another process."""
    return subprocess.Popen(
        [sys.executable, "-m", "app", *shlex.split(line)], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def files(folder: Path = Path()) -> dict[str, bytes | None]:
    """All that lies in a folder: contents by name, None for folders."""
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def tiny(tiny_text) -> str:
    """A fit of a second."""
    data = f"--data CharText --data.corpus {tiny_text} --data.seq_len 16 --data.batch_size 4"
    return f"fit --model TokenFormer {SIZES} {data} {TRAINER}"


@pytest.fixture(scope="module")
def scratch(tiny, tmp_path_factory) -> Path:
    """A folder with a finished run in runs/tiny, and files that will not do. Tests leave it as it is."""
    folder, before = tmp_path_factory.mktemp("scratch"), Path.cwd()
    os.chdir(folder)
    assert call(f"{tiny} --run_dir runs/tiny").code == 0
    last = Path("runs/tiny/checkpoints/last.ckpt").read_bytes()
    Path("whole.ckpt").write_bytes(last)
    Path("truncated.ckpt").write_bytes(last[: len(last) // 2])
    torch.save({"state_dict": {}}, "foreign.ckpt")
    older = read_checkpoint(Path("whole.ckpt"))
    torch.save(older | {"hyper_parameters": older["hyper_parameters"] | {"token_shift": False}}, "older.ckpt")
    Path("text.ckpt").write_text("hello\n")
    Path("other.txt").write_text("ABC abc\n" * 2000)
    Path("empty.txt").touch()
    Path("binary.txt").write_bytes(b"PNG\0\1\2" * 100)
    Path("latin.txt").write_bytes("caf\xe9 ".encode("latin-1") * 100)
    Path("gbk.txt").write_bytes("中文文本, 一二三。\n".encode("gbk") * 100)
    Path("utf16.txt").write_bytes("a text".encode("utf-16"))
    Path("unknown_key.yaml").write_text("trainer: {max_stepz: 3}\n")
    Path("null_trainer.yaml").write_text("trainer: null\n")
    Path("number_optim.yaml").write_text("optim: 3\n")
    Path("list.yaml").write_text("[1, 2]\n")
    Path("broken.yaml").write_text("trainer: [\n")
    Path("twice.yaml").write_text("optim:\n  beta1: 0.5\n  beta2: 0.6\n  beta1: 0.7\n")
    Path("small_data").mkdir()
    os.chdir(before)
    return folder


@pytest.fixture
def here(scratch, monkeypatch) -> Path:
    monkeypatch.chdir(scratch)
    return scratch


# Help -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["", "-h", "--help"])
def test_the_overview_has_a_line_for_every_verb(line):
    code, out, err = call(line)
    assert (code, err) == (0, "")
    for verb, text in (LIGHTNING_VERBS | FUNCTION_VERBS).items():
        assert f"  {verb:<14}{text}\n" in out


def listed(verb: str) -> dict[str, str]:
    """What a verb's help says of each option, by the option with its dashes."""
    return {line.split()[0]: line for line in call(f"{verb} --help").out.splitlines() if line.startswith("  --")}


def test_help_of_fit_lists_every_option_of_the_project():
    from callbacks import Checkpoints, Growth, Samples
    from models.optim import Optim

    out = call("fit --help").out
    for group, kind in (("optim", Optim), ("growth", Growth), ("samples", Samples), ("checkpoints", Checkpoints)):
        for name in inspect.signature(kind).parameters:
            assert f"  --{group}.{name} " in out
    for name in known_names():
        assert f"{name} " in out or f"{name}: " in out
    for name in ("--config", "--print_config", "--run_dir", "--ckpt_path", "--seed_everything", "--trainer.max_steps"):
        assert f"  {name} " in out


@pytest.mark.parametrize("verb", [verb for verb in LIGHTNING_VERBS if verb != "fit"])
def test_help_of_a_verb_that_measures_lists_no_option_of_training(verb):
    options = listed(verb)
    assert {"--ckpt_path", "--run_dir", "--config", "--trainer.accelerator"} <= options.keys()
    assert {name for name in known_names() if name.startswith("--data.")} <= options.keys()
    groups = {option.partition(".")[0] for option in options}
    assert groups == {"--ckpt_path", "--run_dir", "--config", "--quiet", "--data", "--trainer"}
    assert not {"--trainer.max_steps", "--trainer.gradient_clip_val"} & options.keys()


def test_help_of_a_study_lists_the_options_that_it_takes_with_its_own_defaults():
    from datamodules import CharText
    from models import TokenFormer

    options = listed("growth-study")
    for group, kind, ours in (("model", TokenFormer, {"vocab_size"}), ("data", CharText, {"seed"})):
        names = {option.partition(".")[2] for option in options if option.startswith(f"--{group}.")} - {"NAME"}
        assert names == inspect.signature(kind).parameters.keys() - ours
    assert "default: 64)" in options["--model.d_model"]
    assert "default: 0.01)" in options["--optim.learning_rate"]
    assert "--optim.restart_steps" not in options


@pytest.mark.parametrize("verb", [*LIGHTNING_VERBS, *FUNCTION_VERBS])
def test_help_shows_what_people_can_type_in_sentences_that_have_a_noun(verb):
    out = call(f"{verb} --help").out
    assert not re.search(r"<class|Optional\[|Union\[|Literal|tuple\[|NoneType|None\b|True\b|False\b|required", out)
    assert not re.search(r"default: \(?[A-Z]+[,)]", out)
    assert not re.search(r"^  \S+ +Of ", out, re.M)
    assert not re.search(r"^  --\S+ +\(", out, re.M)  # an option without a word


def test_help_keeps_within_the_terminal(monkeypatch):
    class Terminal(StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("COLUMNS", "80")
    wide, narrow = call("fit --help").out, call("fit --help", Terminal()).out
    assert max(len(line) for line in wide.splitlines() if line.startswith("  --")) > 100
    assert max(len(line) for line in narrow.splitlines() if line.startswith("  ") and "python" not in line) <= 80
    assert "".join(wide.split()) == "".join(narrow.split())


def test_help_offers_exactly_the_models_and_data_that_can_be_chosen():
    import datamodules
    import models
    from models.base import LanguageModel

    out = call("fit --help").out
    for key, package, base in (("model", models, LanguageModel), ("data", datamodules, datamodules.TaskData)):
        exported = {name: getattr(package, name) for name in package.__all__}
        classes = {name: kind for name, kind in exported.items() if isinstance(kind, type)}
        chosen = {name for name, kind in classes.items() if issubclass(kind, base) and kind is not base}
        assert {line.split()[1].rstrip(":") for line in out.splitlines() if line.startswith(f"--{key} ")} == chosen
        assert set(choices(package.__name__, base.__name__)) == chosen


def test_help_names_the_choices_of_an_option():
    out = call("fit --help").out
    policies = ("'sqrt_n', 'ramped', 'frozen'", "'split', 'zero_keys'")
    for choice in ("'cosine', 'wsd', 'constant'", *policies, "'gelu_l2_norm'"):
        assert choice in out
    assert "'plain', 'literal', 'dense', default: 'inhibited')" in out  # a name that data has, too


@pytest.mark.parametrize("verb", FUNCTION_VERBS)
def test_help_of_a_function_lists_its_arguments(verb):
    code, out, err = call(f"{verb} --help")
    assert (code, err) == (0, "")
    for name, parameter in inspect.signature(function_of(verb)).parameters.items():
        required = parameter.default is inspect.Parameter.empty
        assert (f"  {name} " if required else f"--{name}") in out


def loaded_by(lines: list[list[str]], modules: set[str]) -> str:
    """Which of these modules a process has loaded when it has carried these command lines out."""
    program = (
        f"import sys\nfrom app.__main__ import main\nfor line in {lines}:\n"
        "    try: assert main(line) == 0\n"
        "    except SystemExit: pass\n"
        f"print('loaded:', *({modules} & set(sys.modules)))"
    )
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    assert process.returncode == 0, process.stderr
    return process.stdout.rpartition("loaded:")[2].strip()


def test_a_report_loads_neither_torch_nor_lightning(tmp_path):
    study().save(tmp_path, "growth.json")
    studies = [str(tmp_path / "growth.json"), str(ROOT / "results" / "searched_recall.json")]
    assert loaded_by([["report", *studies, "--out", str(tmp_path / "R.md")]], {"torch", "lightning"}) == ""
    assert (tmp_path / "R.md").is_file()


def test_the_list_of_runs_loads_neither_torch_nor_lightning(scratch):
    assert loaded_by([["runs", str(scratch / "runs")]], {"torch", "lightning", "numpy", "tensorboard"}) == ""


def test_no_help_imports_torch_or_lightning():
    helps = [["--help"], *([verb, "--help"] for verb in (*LIGHTNING_VERBS, *FUNCTION_VERBS))]
    assert loaded_by(helps, {"torch", "lightning", "numpy", "tensorboard"}) == ""


# Configuration and run folders ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
@pytest.mark.parametrize("model", MODELS)
def test_a_recipe_goes_with_every_model(tiny, tmp_path, monkeypatch, file, model):
    monkeypatch.chdir(tmp_path)
    size = f"--model {model} --model.d_model 16" + (
        " --model.num_heads 2" if model not in ("SparseRNN", "TrajectoryLM") else ""
    )
    line = tiny.replace(f"--model TokenFormer {SIZES}", size)
    code, _, err = call(f"{line} --config {file} --trainer.max_steps 2 --run_dir runs/x")
    assert (code, err) == (0, "")
    saved = read_checkpoint(Path("runs/x/checkpoints/last.ckpt"))["greenhouse"]["optim"]
    assert saved.items() >= yaml.safe_load(file.read_text())["optim"].items()


def test_print_config_can_be_fed_back(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, printed, err = call(f"{tiny} --optim.schedule wsd --print_config")
    assert (code, err) == (0, "")
    assert yaml.safe_load(printed)["model"]["init_args"]["num_param_tokens"] == 4
    Path("all.yaml").write_text(printed)
    assert call("fit --config all.yaml --print_config").out == printed
    assert call("fit --config all.yaml --run_dir runs/fed").code == 0
    saved = yaml.safe_load(Path("runs/fed/config.yaml").read_text())
    assert saved == yaml.safe_load(printed) | {"run_dir": "runs/fed"}


def test_later_configs_and_options_win(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("trainer: {max_steps: 3, val_check_interval: 30}\noptim: {beta1: 0.5}\n")
    Path("b.yaml").write_text("trainer: {max_steps: 4}\noptim: {beta2: 0.6}\n")
    config = yaml.safe_load(call(f"{tiny} --config a.yaml --config b.yaml --optim.beta2 0.7 --print_config").out)
    assert (config["trainer"]["max_steps"], config["trainer"]["val_check_interval"]) == (4, 30)
    assert (config["optim"]["beta1"], config["optim"]["beta2"]) == (0.5, 0.7)


def test_what_a_run_folder_holds(here):
    folder = here / "runs/tiny"
    assert {p.name for p in folder.iterdir()} >= {"checkpoints", "config.yaml", "record.json"}
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["class_path"] == "models.TokenFormer"
    assert config["trainer"]["max_steps"] == 12
    record = json.loads((folder / "record.json").read_text())
    assert (record["status"], record["step"], record["tokens"]) == ("finished", 12, 12 * 4 * 16)


def test_run_folders_are_numbered_and_never_overwritten(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = f"{tiny} --trainer.max_steps 2"
    assert call(short).code == 0
    first = files(Path("runs"))
    for number in (2, 3):
        assert f"run folder: runs/TokenFormer-CharText-{number}\n" in call(short).out
    assert {name: content for name, content in files(Path("runs")).items() if name in first} == first
    assert call(f"{short} --run_dir elsewhere/mine").code == 0
    assert Path("elsewhere/mine/checkpoints/last.ckpt").is_file()


def test_last_and_best_are_those_of_the_newest_run_of_the_name(here, tmp_path, monkeypatch):
    for age, name in enumerate(("a", "a-2", "ab"), 1):
        for kind in ("last", "best"):
            file = tmp_path / "runs" / name / "checkpoints" / f"{kind}.ckpt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(Path(f"runs/tiny/checkpoints/{kind}.ckpt").read_bytes())
            os.utime(file, (age, age))
    Path(tmp_path / "runs/a-2/checkpoints/best.ckpt").unlink()
    Path(tmp_path / "runs/ab/checkpoints/last.ckpt").write_text("damaged")
    monkeypatch.chdir(tmp_path)
    assert "runs/ab/checkpoints/last.ckpt is damaged" in call("validate --ckpt_path last").err
    assert call("validate --ckpt_path last --run_dir runs/a").code == 0
    outcome = call("validate --run_dir=runs/a --ckpt_path=best")  # another run's is not taken for it
    assert_refused(
        outcome, "--ckpt_path best: the newest run, runs/a-2, has no", "such as runs/a/checkpoints/best.ckpt"
    )
    assert call("validate --run_dir=runs/ab --ckpt_path=best").out == call("validate --ckpt_path best").out != ""
    assert "no run in runs/b has a checkpoints/last.ckpt" in call("validate --ckpt_path last --run_dir runs/b").err


# From a checkpoint alone ----------------------------------------------------------------------------------------------


@pytest.fixture
def alone(scratch, tmp_path, monkeypatch) -> str:
    """A checkpoint in an otherwise empty folder."""
    (tmp_path / "some.ckpt").write_bytes((scratch / "whole.ckpt").read_bytes())
    monkeypatch.chdir(tmp_path)
    return "--ckpt_path some.ckpt --trainer.accelerator cpu"


@pytest.mark.parametrize(("verb", "split"), [("validate", "val"), ("test", "test")])
def test_measuring_needs_nothing_but_a_checkpoint(alone, scratch, verb, split):
    code, out, err = call(f"{verb} {alone}")
    assert (code, err) == (0, "")
    assert f"{split} split" in out
    assert "bits per char" in out
    assert "some.ckpt, step 12\n" in out
    again = call(f"{verb} --ckpt_path {scratch}/whole.ckpt --trainer.accelerator cpu").out
    assert out == again.replace(f"{scratch}/whole.ckpt", "some.ckpt")


def test_predictions_are_lines_of_json(alone, tiny_text):
    code, out, err = call(f"predict {alone} --trainer.limit_predict_batches 2")
    assert (code, err) == (0, "")
    (path,) = Path("runs").rglob("predictions.jsonl")
    assert out == f"predictions in {path}\n"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 2 * 4
    text = tiny_text.read_text(encoding="utf-8")
    assert all(row["text"]["inputs"] in text and len(row["predictions"]) == 16 for row in rows)


def test_a_grown_file_goes_on_at_its_step(alone):
    code, out, err = call("grow some.ckpt grown.ckpt --factor 2")
    assert (code, err) == (0, "")
    assert "num_param_tokens 4 -> 8, num_ffn_param_tokens 8 -> 16" in out
    result = call("fit --ckpt_path grown.ckpt --trainer.max_steps 14 --trainer.accelerator cpu")
    assert (result.code, result.err) == (0, "")
    assert "resumed at step 12" in result.out
    (last,) = Path("runs").rglob("last.ckpt")
    assert read_checkpoint(last)["hyper_parameters"]["num_param_tokens"] == 8


def test_text_comes_as_it_is_made_and_the_seed_decides_it(alone):
    console = Console()
    line = "generate some.ckpt --prompt '12: the ' --max_new_tokens 40"
    code, text, err = call(f"{line} --seed 5", console)
    assert code == 0
    assert re.fullmatch(r"prompt: 8 characters at [\d,]+ a second, text: 39 characters at [\d,]+ a second\n", err)
    assert text.startswith("12: the ")
    assert len(text) == len("12: the ") + 40 + 1
    assert {text[: len("12: the ") + n] for n in range(41)} <= set(console.flushed)  # a flush a character
    assert call(f"{line} --seed 5").out == text
    assert call(f"{line} --seed 6").out != text
    greedy = [call(f"{line} --temperature 0 --seed {seed}").out for seed in (1, 2)]
    assert greedy[0] == greedy[1] == call(f"{line} --top_k 1 --temperature 2").out


def test_several_samples_come_apart_at_the_end_and_each_ends_at_its_stop(alone):
    line = "generate some.ckpt --prompt '12: the ' --num_samples 3 --seed 5"
    console = Console()
    code, text, _ = call(f"{line} --max_new_tokens 40", console)
    assert code == 0
    assert "12" not in "".join(console.flushed)
    whole = re.split(r"^--- \d of 3\n", text, flags=re.M)
    assert whole.pop(0) == ""
    samples = [sample.removesuffix("\n").removesuffix("\n") for sample in whole]
    assert len(set(samples)) == 3
    stopped = re.split(r"^--- \d of 3\n", call(f"{line} --max_new_tokens 40 --stop e").out, flags=re.M)[1:]
    for sample, cut in zip(samples, stopped, strict=True):
        end = sample.find("e", len("12: the ")) + 1 or len(sample)
        assert cut.rstrip("\n") == sample[:end].rstrip("\n")


def test_a_prompt_comes_from_a_file_or_from_standard_input(alone, monkeypatch):
    expected = call("generate some.ckpt --prompt '12: the maté ' --max_new_tokens 9").out
    Path("prompt.txt").write_text("12: the maté ", encoding="utf-8")
    assert call("generate some.ckpt --prompt_file prompt.txt --max_new_tokens 9").out == expected
    for option in ("--prompt_file -", "--prompt_file=-"):
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO("12: the maté ".encode())))
        assert call(f"generate some.ckpt {option} --max_new_tokens 9").out == expected


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true"])
def test_text_is_written_in_every_precision(alone, precision):
    code, text, _ = call(f"generate some.ckpt --prompt '12: ' --max_new_tokens 9 --precision {precision} --device cpu")
    assert (code, len(text)) == (0, 4 + 9 + 1)


def test_a_compiled_step_writes_the_same_text(alone, uncompiled, monkeypatch):
    line = "generate some.ckpt --prompt '12: the ' --max_new_tokens 9 --temperature 0"
    code, text, err = call(f"{line} --compile")
    assert (code, text) == (0, call(line).out)
    assert re.search(r"compiled in [\d.]+ s, text: 7 characters", err)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert_refused(call(f"{line} --compile"), "--compile needs a C++ compiler")


def test_a_closed_pipe_is_no_mistake(alone):
    program = start("generate some.ckpt --max_new_tokens 100000", Path.cwd())
    assert len(program.stdout.read(20)) == 20
    program.stdout.close()
    assert program.wait(60) == 0
    assert program.stderr.read() == ""


# Mistakes: one line that names the option, exit code 2, nothing written -----------------------------------------------


def twice(callback: str) -> str:
    """Options that add a callback two times, each told apart from ours."""
    return 2 * f" --trainer.callbacks+={callback} --trainer.callbacks.monitor=train/loss"


MISTAKES = {
    # what is asked for: what the message must say
    "fot": ("unknown verb 'fot'", "'fit'"),
    "test": ("--ckpt_path FILE",),
    "fit": ("--model", "--data"),
    "fit --model TokenFromer --data CharText": ("--model TokenFromer", "'TokenFormer'"),
    "fit --model Transformer --data CharTex": ("--data CharTex", "'CharText'"),
    "fit --model Transformer --data CharText --data.corpus tiny-shakespear": ("--data.corpus", "tiny-shakespeare?"),
    "TINY --modle X": ("--modle", "'--model'"),
    "TINY --model.d_modle 8": ("--model.d_modle", "'--model.d_model'"),
    "TINY --trainer.max_step 8": ("--trainer.max_step", "'--trainer.max_steps'"),
    "TINY --growth.step [8]": ("--growth.step", "'--growth.steps'"),
    "TINY --ckpt whole.ckpt": ("--ckpt", "'--ckpt_path'"),
    "TINY --optim.lr 0.1": ("--optim.lr", "'--optim.learning_rate'"),
    "TINY --model.k 5": ("unknown option --model.k here", "another --model"),
    "TINY --hel": ("unknown option --hel;",),
    "TINY --model.d_mode 8 --help_": ("'--model.d_model'",),
    "TINY --growth 3": ("--growth 3 will not do", "--growth.NAME VALUE"),
    "TINY --trainer.strategy.foo 3": ("unknown option --trainer.strategy.foo;",),
    "TINY --trainer.callbacks+=EarlyStopping --trainer.callbacks.patience=x": ("--trainer.callbacks.patience x", "int"),
    "TINY --trainer.callbacks+=EarlyStopping": ("missing: --trainer.callbacks.monitor",),
    "TINY --trainer.max_steps": ("--trainer.max_steps needs a value", "--trainer.max_steps=VALUE"),
    "TINY --data.test_seq_lens 64": ("--data.test_seq_lens 64", "expected list[int]"),
    "TINY --trainer.logger WandbLogger": ("WandbLogger: Requirement 'wandb", "pip install"),
    "TINY --model.vocab_size 5": ("--model.vocab_size", "data"),
    "TINY --data.seed 5": ("--data.seed", "--seed_everything"),
    "TINY --model.d_model abc": ("--model.d_model abc", "int"),
    "TINY --optim.schedule linear": ("--optim.schedule linear", "'cosine', 'wsd', 'constant'"),
    "TINY --optim.learning_rate -1": ("--optim.learning_rate is -1", "must be above 0"),
    "TINY --optim.optimizer adam": ("--optim.optimizer adam", "'adamw', 'muon'"),
    "TINY --optim.head_learning_rate 0": ("--optim.head_learning_rate is 0",),
    "fit --ckpt_path whole.ckpt --optim.optimizer muon": ("--optim.optimizer muon", "whole.ckpt", "adamw"),
    "TINY --seed_everything -1": ("--seed_everything -1",),
    "TINY --config none.yaml": ("--config", "none.yaml"),
    "TINY --config unknown_key.yaml": ("--trainer.max_stepz", "'--trainer.max_steps'"),
    "TINY --config list.yaml": ("--config list.yaml",),
    "TINY --config broken.yaml": ("--config broken.yaml",),
    "TINY --config twice.yaml": ("--config twice.yaml: beta1 stands in line 2 and again in line 4",),
    "TINY --optim '{beta1: 0.5, beta1: 0.6}'": ("--optim: ", "beta1 stands in line 1 and again in line 1"),
    "test --ckpt_path older.ckpt": ("older.ckpt is of an older version, whose TokenFormer had --model.token_shift;",),
    # sizes that do not fit together
    "TINY --model.d_model 15": ("--model.d_model 15", "--model.num_heads 2"),
    "TINY --model.num_layers 0": ("--model.num_layers",),
    "fit --model Palm --data CharText --model.rank 0": ("--model.rank is 0",),
    "fit --model Palm --data CharText --model.num_recursions 0": ("--model.num_recursions is 0",),
    "fit --model Palm --data CharText --model.d_model 24 --model.num_heads 8": ("--model.d_model 24", "multiple of 16"),
    "fit --model Palm --data CharText --model.mixing attention": ("--model.mixing attention", "'detail', 'aft'"),
    "TINY --model.positions none --model.rope_base 100": ("--model.rope_base 100", "--model.positions none"),
    "fit --model SparseRNN --data CharText --model.k 200 --model.state_width 64": ("--model.k 200", "state_width 64"),
    "fit --model PotatoLM --data CharText --model.chunk_size 0": ("--model.chunk_size is 0",),
    "fit --model PotatoLM --data CharText --model.d_model 65 --model.num_heads 5 --model.positions rotary": (
        "--model.d_model 65",
        "multiple of 2",
    ),
    "fit --model TrajectoryLM --data CharText --model.memory_len 0": ("--model.memory_len is 0", "1 to"),
    "fit --model TrajectoryLM --data CharText --model.spans [1,9999]": ("--model.spans", "4096"),
    "TINY --data.seq_len 100000": ("--data.seq_len 100000", "11024"),
    "TINY --data.batch_size 0": ("--data.batch_size",),
    "fit --model Transformer --data AssociativeRecall --data.train_mixture [[64,32]]": ("--data.train_mixture", "4 N"),
    "TINY --trainer.max_steps 0": ("--trainer.max_steps 0",),
    "TINY --trainer.max_steps -5": ("--trainer.max_steps",),
    "TINY --trainer.val_check_interval 0": ("--trainer.val_check_interval",),
    "TINY --trainer.devices 0": ("--trainer.devices",),
    # of Lightning's Trainer: what it takes without a word, and what it refuses in many ways
    "TINY --trainer.val_check_interval 00:00:05": ("--trainer.val_check_interval 00:00:05", "DD:HH:MM:SS"),
    "TINY --trainer.accumulate_grad_batches 0": ("--trainer.accumulate_grad_batches is 0", "at least 1"),
    "TINY --trainer.check_val_every_n_epoch 0": ("--trainer.check_val_every_n_epoch is 0", "at least 1"),
    "TINY --trainer.gradient_clip_val -1": ("--trainer.gradient_clip_val is -1", "at least 0"),
    "TINY --trainer.gradient_clip_val .nan": ("--trainer.gradient_clip_val is nan", "at least 0"),
    "TINY --trainer.log_every_n_steps 0": ("--trainer.log_every_n_steps is 0", "at least 1"),
    "TINY --trainer.limit_train_batches 0": ("--trainer.limit_train_batches is 0", "above 0"),
    "TINY --trainer.num_sanity_val_steps -2": ("--trainer.num_sanity_val_steps is -2", "at least -1"),
    "TINY --trainer.min_steps 100": ("--trainer.min_steps 100", "--trainer.max_steps 12"),
    "TINY --trainer.max_epochs 0": ("--trainer.max_epochs 0", "-1"),
    "TINY --trainer.default_root_dir here": ("--trainer.default_root_dir", "--run_dir"),
    "TINY --trainer.enable_checkpointing false": ("--trainer.enable_checkpointing false", "leave it out"),
    "TINY --trainer.barebones true": ("--trainer.barebones true", "bench"),
    "TINY --trainer.model_registry x": ("--trainer.model_registry",),
    "TINY --trainer.num_nodes 2": ("--trainer.num_nodes 2", "torchrun", "NODE_RANK"),
    "TINY --trainer.accelerator tpu": ("--trainer.accelerator tpu", "torch_xla"),
    "TINY --trainer.devices abc": ("--trainer.devices abc",),
    "TINY --trainer.max_time x": ("--trainer.max_time x", "DD:HH:MM:SS"),
    "TINY --trainer.profiler x": ("--trainer.profiler x", "'simple'"),
    "TINY --trainer.strategy deepspeed": ("--trainer.strategy deepspeed", "pip install"),
    f"TINY {twice('ModelCheckpoint')}": ("--trainer.callbacks", "more than one", "ModelCheckpoint"),
    "TINY --seed_everything true": ("--seed_everything true is no number",),
    "TINY --config null_trainer.yaml": ("trainer: None in --config", "{NAME: VALUE}"),
    "TINY --config number_optim.yaml": ("optim: 3 in --config", "{NAME: VALUE}"),
    "TINY --trainer.strategy fsdp3": ("--trainer.strategy",),
    "TINY --samples.prompt Ω": ("--samples.prompt", "Ω"),
    # growth
    "TINY --growth.steps [5,3] --growth.factor [2,3]": ("--growth.steps [5, 3]", "increase"),
    "TINY --growth.steps [3] --growth.num_param_tokens [2]": ("--growth.num_param_tokens 2", "shrink"),
    "TINY --growth.steps [3,5] --growth.num_param_tokens [9,5]": ("--growth.num_param_tokens [9, 5]", "shrinks"),
    "TINY --growth.steps [3] --growth.factor [0.5]": ("--growth.", "shrink"),
    "TINY --growth.steps [3] --growth.factor [.inf]": ("--growth.factor",),
    "TINY --growth.steps [3]": ("--growth.steps", "--growth.factor"),
    "TINY --growth.steps [50] --growth.factor [2]": ("--growth.steps [50]", "step 12", "--trainer.max_steps"),
    "TINY --growth.steps [3] --growth.factor [1]": ("--growth.steps 3", "nothing grows"),
    "TINY --growth.init random": ("--growth.init random", "--growth.steps"),
    "fit --ckpt_path whole.ckpt --trainer.max_steps 20 --growth.steps [3] --growth.factor [2]": (
        "--growth.steps 3",
        "goes on at step 12",
    ),
    "TINY --growth.factor [2]": ("--growth.factor", "--growth.steps"),
    "fit --model Transformer --data Copying --growth.steps [3] --growth.factor [2]": ("--growth.factor", "num_layers"),
    "grow whole.ckpt truncated.ckpt --factor 2": ("OUT_CKPT truncated.ckpt exists",),
    "grow whole.ckpt other.txt/out.ckpt --factor 2": ("OUT_CKPT other.txt/out.ckpt",),
    "grow whole.ckpt": ("OUT_CKPT",),
    "grow whole.ckpt out.ckpt": ("--num_param_tokens", "--factor"),
    "grow whole.ckpt out.ckpt --factor 1": ("nothing to grow", "larger"),
    "grow whole.ckpt out.ckpt --factor 1e300": ("--num_param_tokens", "at most 2147483647"),
    "grow whole.ckpt out.ckpt --num_param_tokens 3": ("--num_param_tokens 3", "shrink"),
    "grow whole.ckpt out.ckpt --factor .inf": ("--factor",),
    "grow whole.ckpt out.ckpt --facto 2": ("--facto", "'--factor'"),
    "grow truncated.ckpt out.ckpt --factor 2": ("IN_CKPT truncated.ckpt", "damaged"),
    # the first argument of bench, with and without its name
    "bench mixer": ("--what mixer", "'mixers'"),
    "bench mixers --models [Palms]": ("--models Palms", "Palm"),
    "bench --what sparse --models [Palm]": ("--models", "mixers"),
    # lists with nothing in them
    "compare --tokens 1e5 --tasks []": ("--tasks is empty",),
    "compare --tokens 1e5 --d_models []": ("--d_models is empty",),
    "compare --tokens 1e5 --d_models [0]": ("--d_models is 0; it must be at least 1",),
    "growth-study --sizes []": ("--sizes is empty",),
    "growth-study --seeds []": ("--seeds is empty",),
    "growth-study --recipes []": ("--recipes is empty",),
    "growth-study --scratch_budgets []": ("--scratch_budgets is empty",),
    "bench --what []": ("--what is empty",),
    "bench mixers --seq_lens []": ("--seq_lens is empty",),
    "scorecard --tasks []": ("--tasks is empty",),
    # studies: what no run of theirs could do, and where nothing can be written
    f"compare --presets {CONFIGS}/experiment --tokens 1e5 --trainer.gradient_clip_val -1": (
        "--trainer.gradient_clip_val is -1",
        "at least 0",
    ),
    f"compare --presets {CONFIGS}/experiment --tokens 1e5 --trainer.devices abc --trainer.accelerator cpu": (
        "--trainer.devices abc",
    ),
    f"compare --presets {CONFIGS}/experiment --tokens 1e5 --trainer.accelerator tpu": ("--trainer.accelerator tpu",),
    f"compare --presets {CONFIGS}/experiment --tokens 1e5 --out other.txt/here": (
        "--out other.txt/here",
        "other.txt is no folder",
    ),
    "growth-study --trainer.accelerator tpu": ("--trainer.accelerator tpu",),
    "growth-study --out other.txt": ("--out other.txt", "is no folder"),
    "bench --json other.txt/here": ("--json other.txt/here", "other.txt is no folder"),
    "bench --json small_data": ("--json small_data is a folder", "name a file"),
    "report runs --out other.txt/R.md": ("--out other.txt/R.md", "other.txt is no folder"),
    "scaling runs --out other.txt": ("--out other.txt", "other.txt is no folder"),
    "scorecard --out other.txt/here": ("--out other.txt/here", "other.txt is no folder"),
    # checkpoints
    "test --ckpt_path whole.ckpt --trainer.limit_test_batches 0": ("--trainer.limit_test_batches 0", "nothing to test"),
    "validate --ckpt_path whole.ckpt --trainer.limit_val_batches 0": ("--trainer.limit_val_batches 0", "leave it out"),
    "test --ckpt_path none.ckpt": ("--ckpt_path none.ckpt",),
    "test --ckpt_path truncated.ckpt": ("--ckpt_path truncated.ckpt", "damaged"),
    "test --ckpt_path foreign.ckpt": ("--ckpt_path foreign.ckpt", "not written by this project"),
    "generate text.ckpt": ("CKPT text.ckpt", "damaged or no checkpoint"),
    "fit --ckpt_path whole.ckpt --model Transformer": ("--ckpt_path whole.ckpt holds a TokenFormer", "--model Transf"),
    "fit --ckpt_path whole.ckpt --model.d_model 32": ("--ckpt_path whole.ckpt has d_model 16", "--model.d_model is 32"),
    "fit --ckpt_path whole.ckpt --data.corpus other.txt": ("--ckpt_path whole.ckpt", "vocabulary", "--data.corpus"),
    "fit --ckpt_path whole.ckpt --data Copying": ("--ckpt_path whole.ckpt", "vocabulary"),
    "fit --ckpt_path whole.ckpt --trainer.max_steps 12": ("--trainer.max_steps 12", "step 12"),
    "fit --ckpt_path best --run_dir runs/none": ("--ckpt_path best", "runs/none"),
    # text
    "generate whole.ckpt --prompt Ω": ("--prompt", "Ω"),
    "generate whole.ckpt --prompt ''": ("--prompt",),
    "generate whole.ckpt --num_samples 0": ("--num_samples is 0", "at least 1"),
    "generate whole.ckpt --stop Ω": ("--stop", "Ω"),
    "generate whole.ckpt --stop ''": ("--stop is empty",),
    "generate whole.ckpt --prompt_file none.txt": ("--prompt_file none.txt cannot be read", "standard input"),
    "generate whole.ckpt --prompt_file small_data": ("--prompt_file small_data cannot be read",),
    "generate whole.ckpt --prompt_file empty.txt": ("--prompt_file empty.txt is empty",),
    "generate whole.ckpt --prompt_file latin.txt": ("--prompt_file latin.txt is not UTF-8",),
    "generate whole.ckpt --prompt_file other.txt --prompt A": ("--prompt_file other.txt and --prompt",),
    "generate whole.ckpt --precision bf16": ("--precision bf16 will not do", "'bf16-mixed'"),
    "generate whole.ckpt --device tpu": ("--device tpu will not do",),
    "generate whole.ckpt --top_k 0": ("--top_k is 0", "at least 1"),
    "generate whole.ckpt --temperature -1": ("--temperature is -1.0", "at least 0"),
    "generate whole.ckpt --temperature .nan": ("--temperature is nan", "at least 0"),
    "generate whole.ckpt --max_new_tokens -1": ("--max_new_tokens is -1", "at least 0"),
    "generate whole.ckpt --prompt --seed 3": ("--prompt needs a value",),
    "generate whole.ckpt --seed 99999999999999999999": ("--seed",),
    "TINY --data.corpus empty.txt": ("--data.corpus empty.txt is empty",),
    "TINY --data.corpus binary.txt": ("--data.corpus binary.txt",),
    "TINY --data.corpus latin.txt": ("--data.corpus latin.txt is not UTF-8", "iconv -f latin1"),
    "TINY --data.corpus gbk.txt": ("--data.corpus gbk.txt is not UTF-8", "iconv -f gb18030"),
    "TINY --data.corpus utf16.txt": ("--data.corpus utf16.txt is not UTF-8", "iconv -f utf-16"),
    "TINY --data.corpus small_data": ("--data.corpus small_data has no files",),
    # places: a file where a folder should be, as permissions do not stop every user
    "TINY --run_dir other.txt": ("--run_dir other.txt",),
    "TINY --run_dir other.txt/run": ("--run_dir other.txt/run",),
}


def assert_refused(outcome: Outcome, *says: str) -> None:
    assert outcome.code == 2, outcome
    assert outcome.err.startswith("error: "), outcome
    assert outcome.err.count("\n") == 1, outcome.err
    for words in says:
        assert words in outcome.err


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_gives_one_line_and_leaves_nothing(here, tiny, line):
    before = files()
    assert_refused(call(line.replace("TINY", tiny)), *MISTAKES[line])
    assert files() == before


def test_a_mistake_shows_no_traceback_in_a_process_of_its_own(here):
    process = start("test --ckpt_path truncated.ckpt", here)
    out, err = process.communicate(timeout=TIMEOUT)
    assert_refused(Outcome(process.returncode, out, err), "--ckpt_path truncated.ckpt")
    assert out == ""


def test_only_the_first_of_several_processes_complains(here, monkeypatch):
    for variable in ("RANK", "SLURM_PROCID"):
        with monkeypatch.context() as environment:
            environment.setenv(variable, "1")
            environment.setenv("LOCAL_RANK", "0")
            assert call("fot") == (2, "", "")


def test_a_corpus_that_cannot_be_downloaded_says_what_to_put_where(here, tiny, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    before = files()
    outcome = call(f"{tiny} --data.corpus tiny-shakespeare --data.data_dir small_data")
    checksum = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    assert_refused(outcome, "small_data/tiny-shakespeare.txt", checksum, "https://", "--data.data_dir")
    assert files() == before


def test_a_loss_that_is_not_finite_stops_the_run_with_the_last_good_checkpoint(alone):
    diverge = "--optim.learning_rate 1e30 --optim.warmup_steps 0 --trainer.max_steps 40 --checkpoints.every_n_steps 1"
    assert call(f"fit {alone} --trainer.max_steps 14 --run_dir runs/x").code == 0
    good = Path("runs/x/checkpoints/last.ckpt").read_bytes()
    outcome = call(f"fit --ckpt_path last --run_dir runs/x {diverge}")
    assert_refused(outcome, "not finite at step", "runs/x/checkpoints/last.ckpt", "--optim.learning_rate")
    left = read_checkpoint(Path("runs/x/checkpoints/last.ckpt"))
    assert all(torch.isfinite(value).all() for value in left["state_dict"].values())
    assert left["global_step"] >= 14 or Path("runs/x/checkpoints/last.ckpt").read_bytes() == good
    assert json.loads(Path("runs/x/record.json").read_text())["status"].startswith("failed: ")


# Processes of their own -----------------------------------------------------------------------------------------------


def test_a_normal_run_says_what_a_person_wants_to_know_and_nothing_else(tiny, tmp_path):
    process = start(f"{tiny} --run_dir runs/one", tmp_path)
    out, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, err) == (0, "")
    for part in (
        "TokenFormer, 1,888 parameters, on 1 x CPU (32-true), 12 steps\n",  # what runs, on what
        "data: task CharText, corpus ",
        "run folder: runs/one\n",
        "step 5/12 | ",  # how far
        "step 10/12 | ",
        " bits/char, accuracy ",  # how well
        "runs/one",  # where
        "tensorboard --logdir runs",
    ):
        assert part in out
    assert len(out.splitlines()) < 12


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_saves_and_goes_on_as_if_it_had_not_been(tiny, tmp_path, monkeypatch, signum, code):
    monkeypatch.chdir(tmp_path)
    endless = f"{tiny} --optim.schedule constant --model.dropout 0.1"
    pid = begin(f"{endless} --trainer.max_steps 1000000 --run_dir runs/cut", tmp_path)
    wait_for("step 5/", tmp_path)
    tell(pid, signum)
    assert (end(pid), Path(ERRORS).read_text()) == (code, "")
    assert "go on with `python -m app fit --ckpt_path runs/cut/checkpoints/last.ckpt`" in Path(OUTPUT).read_text()
    assert json.loads(Path("runs/cut/record.json").read_text())["status"] == "interrupted"
    stopped_at = read_checkpoint(Path("runs/cut/checkpoints/last.ckpt"))["global_step"]
    assert call(f"fit --ckpt_path last --trainer.max_steps {stopped_at + 7}").code == 0
    assert call(f"{endless} --trainer.max_steps {stopped_at + 7} --run_dir runs/whole").code == 0
    assert_same_run(*(Path("runs") / name / "checkpoints" / "last.ckpt" for name in ("cut", "whole")))

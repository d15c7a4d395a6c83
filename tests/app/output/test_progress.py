"""What verbs that take long say: a line before anything heavy is loaded, a line a step, a bar in a terminal."""

import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from app.output.progress import steps
from tests.app.forked import TIMEOUT

ROOT = Path(__file__).resolve().parents[3]
FIRST_WORDS = """
import sys
from app.__main__ import main

class Listener:
    encoding, errors = "utf-8", "strict"
    def isatty(self): return False
    def flush(self): pass
    def write(self, text):
        print(text, "torch" in sys.modules, file=sys.stderr)
        raise SystemExit(7)

sys.stdout = Listener()
main(sys.argv[1:])
"""


@pytest.mark.parametrize(("command", "words"), [
    (["compare", "--models", "[Palm,Transformer]", "--tasks", "[copying]", "--tokens", "[1e6,2e6]"],
     "compare: 20 runs in runs/compare"),
    (["growth-study", "--questions", "[chain]", "--seeds", "[1,2]", "--scratch_budgets", "[1]", "--out", "x"],
     "growth-study: 81 runs in x"),
    (["scaling", "results/scaling.json"], "scaling: laws of val/bits_per_char in 120 runs, each fitted 501 times"),
    (["bench", "[growth,loader]"], "bench: growth, loader"),
])  # fmt: skip
def test_the_first_line_comes_before_torch_is_loaded(command, words):
    process = subprocess.run(
        [sys.executable, "-c", FIRST_WORDS, *command], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert (process.returncode, process.stderr) == (7, f"{words} False\n")


def told(measuring: bool, terminal: bool) -> str:
    console = Console(file=StringIO(), force_terminal=terminal, width=100)
    with steps(2, console, measuring=measuring) as tell:
        tell("one [bold] thing")
        tell("another")
    return console.file.getvalue()


def test_elsewhere_there_are_lines_alone():
    assert told(False, terminal=False) == told(True, terminal=False) == "1/2 one [bold] thing\n2/2 another\n"


@pytest.mark.parametrize(("measuring", "counts"), [(False, ["0", "1", "2"]), (True, ["0", "1"])])
def test_a_terminal_has_a_bar_below_the_lines(measuring, counts):
    printed = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", told(measuring, terminal=True))
    assert "1/2 one [bold] thing\n" in printed
    assert list(dict.fromkeys(re.findall(r"(\d)/2 \d:\d\d:\d\d time left", printed))) == counts

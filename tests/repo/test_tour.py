"""docs/tour.ipynb runs from top to bottom and shows what it prints; `python tests/repo/test_tour.py` writes it anew."""

import json
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOUR = ROOT / "docs" / "tour.ipynb"
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def printed_by(cells: list[dict]) -> list[str]:
    """What each cell of code prints, one after the other in one namespace."""
    namespace: dict[str, object] = {}
    printed = []
    for cell in cells:
        with redirect_stdout(StringIO()) as out:
            exec(compile("".join(cell["source"]), str(TOUR), "exec"), namespace)
        printed.append(out.getvalue())
    return printed


def read() -> tuple[dict, list[dict]]:
    """The notebook, and its cells of code."""
    tour = json.loads(TOUR.read_text(encoding="utf-8"))
    return tour, [cell for cell in tour["cells"] if cell["cell_type"] == "code"]


def steady(text: str) -> str:
    """What is printed without what the model writes, in which rounding can tip the likeliest character."""
    return re.sub(r"This is the cow.*", "", text, flags=re.S)


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in NUMBER.findall(text)]


def test_the_tour_runs_and_shows_what_it_prints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    _, cells = read()
    shown = ["".join(line for output in cell["outputs"] for line in output["text"]) for cell in cells]
    printed = printed_by(cells)
    assert not list(tmp_path.iterdir())
    assert sum("This is the cow" in text for text in printed) == 2
    for ours, theirs in zip(map(steady, shown), map(steady, printed), strict=True):
        assert NUMBER.sub("#", ours) == NUMBER.sub("#", theirs)
        assert numbers(ours) == pytest.approx(numbers(theirs), rel=0.05, abs=0.1)


if __name__ == "__main__":
    tour, cells = read()
    for number, (cell, text) in enumerate(zip(cells, printed_by(cells), strict=True), 1):
        lines = text.splitlines(keepends=True)
        cell["execution_count"] = number
        cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": lines}] if lines else []
    TOUR.write_text(json.dumps(tour, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

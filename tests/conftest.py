"""What every test shares: one thread, fixed seeds, reproducible property tests and a small text to train on."""

import os

# Before torch loads, and inherited by the processes that tests start: the workers share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random
from pathlib import Path

import hypothesis
import pytest
import torch

import app.compare.command  # noqa: F401 # its default paths are relative to where it is imported, no test's folder

torch.set_num_threads(1)

# Timing says nothing on a shared machine; in CI the examples are the same in every run.
hypothesis.settings.register_profile("greenhouse", deadline=None, max_examples=30, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("greenhouse")


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Start every test from the same random state, whatever ran before it."""
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are compiled to graphs, but not to machine code, which takes some seconds a model."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, options=None: compile(function, backend="eager"))


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A UTF-8 file of about 12,000 characters: regular enough to learn from, no two lines alike, not only ASCII."""
    plants = ("fern", "moss", "rose", "maté", "ivy", "reed", "sage")
    verbs = ("grows", "sleeps", "climbs", "waits", "blooms")
    lines = (
        f"{day}: the {plants[day % 7]} {verbs[day % 5]} near the {plants[(3 * day + 1) % 7]}.\n" for day in range(350)
    )
    path = tmp_path_factory.mktemp("text") / "tiny.txt"
    path.write_text("".join(lines), encoding="utf-8")
    return path

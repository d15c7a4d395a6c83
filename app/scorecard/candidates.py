"""What a scorecard compares: models by name, options and recipe, built for any vocabulary; what records say of them.

A `Spec` is one configuration; a candidate has one for all tasks. The fingerprint of what was trained leaves the
vocabulary out, which is all that a task may decide; the parameters of its `body` are those that do not depend on the
vocabulary either.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import dataclass, replace
from typing import Any

import torch

import models
from app.cli.groups import OptionGroup
from app.cli.names import BASELINE
from app.scorecard.recipe import strongest
from app.study.conduct import parsed
from app.study.study import Record
from models.base import LanguageModel
from models.optim import Optim

FINGERPRINT_DIGITS = 12
RELATIVES = "Nearest relatives:"  # begins the paragraph of a model's module that a person judges novelty by


@dataclass(frozen=True)
class Spec:
    """A model's name, in which options it differs from its defaults, and how it is trained."""

    model: str
    options: dict[str, Any]
    optim: Optim

    def build(self, vocab_size: int, device: str = "cpu") -> LanguageModel:
        """A new model, from PyTorch's random state, that will be trained by the recipe."""
        model: LanguageModel = getattr(models, self.model)(vocab_size=vocab_size, **self.options)
        model.optim = self.optim
        return model.to(device)


def candidate(name: str, model: OptionGroup, optim: OptionGroup, help_command: str) -> Spec:
    """The model of this name as the options say; ValueError, naming the option, if it cannot be."""
    if any(option.partition("=")[0] == "--model.vocab_size" for option in model.options):
        raise ValueError("--model.vocab_size is not an option of its own: each task gives it; leave it out")
    kind = getattr(models, name)
    known = inspect.signature(kind).parameters
    model = replace(model, defaults={option: value for option, value in model.defaults.items() if option in known})
    options = parsed(kind, "model", model, help_command)
    spec = Spec(name, options, Optim(**parsed(Optim, "optim", optim, help_command)))
    spec.build(vocab_size=2)
    return spec


def baseline(candidate: Spec, task: str) -> Spec:
    """The strongest one-layer Transformer for a task, of a candidate's width."""
    d_model = candidate.build(vocab_size=2).d_model
    options, recipe = strongest(task, d_model)
    return Spec(BASELINE, {"d_model": d_model, "num_layers": 1} | options, Optim(**recipe))


def fingerprint(record: Record) -> str:
    """Digits that any option of a trained model or of its recipe changes, and its vocabulary does not."""
    options = record["model_options"] | {"vocab_size": None}
    content = [record["model"], options, record["optim"]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:FINGERPRINT_DIGITS]


def body_parameters(record: Record) -> int:
    """Parameters that do not come with the vocabulary: what is left when one token's are taken away for each token."""
    kind, options = getattr(models, record["model"]), record["model_options"]
    with torch.device("meta"):
        larger = kind(**options | {"vocab_size": options["vocab_size"] + 1})
    return record["parameters"] - options["vocab_size"] * (larger.num_parameters() - record["parameters"])


def relatives(name: str) -> str:
    """The paragraph of the model's module that begins with "Nearest relatives:", in one line; empty if none does."""
    module = inspect.getmodule(getattr(models, name))
    paragraphs = (inspect.getdoc(module) or "").split("\n\n")
    return next((" ".join(text.split()) for text in paragraphs if text.startswith(RELATIVES)), "")

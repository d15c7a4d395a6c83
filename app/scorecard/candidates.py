"""What a scorecard compares: models by name, options and recipe, built for any vocabulary; what can be read of them.

A `Spec` is one configuration for all tasks. The hash of it leaves the vocabulary out, which is all that a task may
decide; the parameters of its `body` are those that do not depend on the vocabulary either.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import models
from app.cli.help import known_names
from app.cli.mistakes import explained
from app.cli.names import BASELINE
from app.cli.options import OptionGroup, Parser
from models.base import LanguageModel
from models.optim import Optim

# Of rope_base 100 and 10,000, with and without token shift, this reads text and copies best; one for all tasks.
BASELINE_OPTIONS: dict[str, Any] = {"rope_base": 100.0, "token_shift": True}
HEAD_WIDTH = 16  # of the baseline, as in its defaults of 8 heads at width 128
RECIPE: dict[str, Any] = {"optimizer": "muon", "learning_rate": 1e-2, "weight_decay": 0.0}  # the baseline's best
RELATIVES = "Nearest relatives:"  # begins the paragraph of a model's module that a person judges novelty by


@dataclass(frozen=True)
class Spec:
    """A model's name, the options of its constructor but for the vocabulary, and how it is trained."""

    model: str
    options: dict[str, Any]
    optim: Optim

    def build(self, vocab_size: int, device: str = "cpu") -> LanguageModel:
        """A new model, from PyTorch's random state, that will be trained by the recipe."""
        model: LanguageModel = getattr(models, self.model)(vocab_size=vocab_size, **self.options)
        model.optim = self.optim
        return model.to(device)


def recipe(options: Sequence[str], help_command: str) -> Optim:
    """The recipe with what `--optim.…` changes in it."""
    parser = Parser(allow_abbrev=False)
    parser.add_class_arguments(Optim, "optim")
    parser.set_defaults({f"optim.{name}": value for name, value in RECIPE.items()})
    with explained(help_command):
        values = parser.parse_args(list(options))["optim"].as_dict()
    return Optim(**values)


def constructor_options(name: str, options: Sequence[str], help_command: str) -> dict[str, Any]:
    """All options of a model's constructor but the vocabulary, with what `--model.…` says; one layer if it can."""
    if any(option.partition("=")[0] == "--model.vocab_size" for option in options):
        raise ValueError("--model.vocab_size is not an option of its own: each task gives it; leave it out")
    kind = getattr(models, name)
    parser = Parser(allow_abbrev=False)
    parser.add_class_arguments(kind, "model", skip={"vocab_size"})
    if "num_layers" in inspect.signature(kind).parameters:
        parser.set_defaults({"model.num_layers": 1})
    with explained(help_command, known_names()):
        values: dict[str, Any] = parser.parse_args(list(options))["model"].as_dict()
    return values


def candidate(name: str, model: OptionGroup, optim: OptionGroup, help_command: str) -> Spec:
    """The model of this name as the options say; ValueError, naming the option, if it cannot be built."""
    options = constructor_options(name, model.options, help_command)
    spec = Spec(name, options, recipe(optim.options, help_command))
    spec.build(vocab_size=2)
    return spec


def baseline(d_model: int, num_layers: int = 1) -> Spec:
    """The strongest Transformer of this width and depth."""
    num_heads = {"num_heads": max(1, d_model // HEAD_WIDTH), "d_model": d_model, "num_layers": num_layers}
    return Spec(BASELINE, num_heads | BASELINE_OPTIONS, Optim(**RECIPE))


def fingerprint(model: LanguageModel) -> str:
    """Twelve digits that any option of the model or of its recipe changes, and its vocabulary does not."""
    options = {name: value for name, value in model.hparams.items() if name != "vocab_size"}
    content = {"model": type(model).__name__, "options": options, "optim": asdict(model.optim)}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode()).hexdigest()[:12]


def body_parameters(spec: Spec, vocab_size: int) -> int:
    """Parameters that do not come with the vocabulary: what is left when one token's are taken away for each token."""
    here, one_more = (spec.build(size).num_parameters() for size in (vocab_size, vocab_size + 1))
    return here - vocab_size * (one_more - here)


def relatives(name: str) -> str:
    """The paragraph of the model's module that begins with "Nearest relatives:", in one line; empty if none does."""
    module = inspect.getmodule(getattr(models, name))
    paragraphs = (inspect.getdoc(module) or "").split("\n\n")
    return next((" ".join(text.split()) for text in paragraphs if text.startswith(RELATIVES)), "")

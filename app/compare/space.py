"""What a search chooses from, as a file says it, and its trials: a Sobol sequence over all that varies.

Trial 0 is the experiment file as it is. Trial n is point n of the sequence (I. M. Sobol 1967; Joe & Kuo 2008), which is
not scrambled, so that a trial is a function of its number and the space alone. Dimensions come in the file's order and
a model's own last: what two models share has the same value in a trial of the same number.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.cli.mistakes import nearest
from app.cli.yaml_text import read_yaml

OWN = "own"  # the recipe of the experiment file
KEYS = ("recipes", "learning_rate", "weight_decay", "model")
Choice = tuple[tuple[str, Any], ...]  # options of a model, and their values


@dataclass(frozen=True)
class Trial:
    """One configuration that is tried.

    Attributes:
        number: Its place in the search; 0 is the experiment file as it is.
        factor: Multiple of the recipe's learning rates.
        recipe: Name of the recipe, or OWN.
        weight_decay: In the place of the recipe's; None for that.
        choices: Options of the model over those of the experiment file, in the order in which they are put there.
    """

    number: int = 0
    factor: float = 1.0
    recipe: str = OWN
    weight_decay: float | None = None
    choices: tuple[Choice, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As labels of a run have it, but for the learning rate; what the experiment file decides is left out."""
        recipe = {} if self.recipe == OWN else {"recipe": self.recipe}
        decay = {} if self.weight_decay is None else {"weight_decay": self.weight_decay}
        return recipe | decay | dict(pair for choice in self.choices for pair in choice)


@dataclass(frozen=True)
class Space:
    """What may be chosen.

    Attributes:
        recipes: Names of files in the folder of recipes, beside the experiment file's own.
        learning_rate: Least and greatest multiple of the recipe's learning rates.
        weight_decay: Values, in ascending order.
        model: By option its choices, each a value or a mapping of several options.
    """

    recipes: list[str]
    learning_rate: tuple[float, float]
    weight_decay: list[float]
    model: dict[str, list[Any]]

    def trial(self, number: int, model: Any) -> Trial:
        """The trial of this number for a class of models."""
        if number == 0:
            return Trial()
        choices = self.choices(model)
        rate, recipe, decay, *rest = point(number, 3 + len(self.model) + len(model.searched))
        low, high = self.learning_rate
        places = dict(zip([*self.model, *model.searched], rest, strict=True))
        return Trial(
            number,
            rounded(low * (high / low) ** rate),
            picked([OWN, *self.recipes], recipe),
            picked(self.weight_decay, decay) if self.weight_decay else None,
            tuple(as_choice(name, picked(values, places[name])) for name, values in choices.items()),
        )

    def choices(self, model: Any) -> dict[str, Sequence[Any]]:
        """By option the choices that a class of models has: those of the space, and its own."""
        has = inspect.signature(model).parameters
        return {name: values for name, values in self.model.items() if name in has} | dict(model.searched)


def point(number: int, dimensions: int) -> list[float]:
    """Point `number` of the Sobol sequence in [0, 1)^dimensions; number 0 is the origin."""
    import torch

    sequence = torch.quasirandom.SobolEngine(dimensions)
    return sequence.draw(number + 1, dtype=torch.float64)[-1].tolist()


def picked(values: Sequence[Any], place: float) -> Any:
    """The value at a place in [0, 1)."""
    return values[int(place * len(values))]


def as_choice(name: str, value: Any) -> Choice:
    """Options and values that a choice stands for."""
    return tuple(value.items()) if isinstance(value, Mapping) else ((name, value),)


def rounded(factor: float) -> float:
    """A factor in three digits, as names and tables have it."""
    return float(f"{factor:.3g}")


# The file -------------------------------------------------------------------------------------------------------------


def read_space(path: Path) -> Space:
    """The space in a file; ValueError, naming --space, for one that cannot be searched."""
    if not path.is_file():
        raise ValueError(f"--space {path} is no file; name one as app/configs/search.yaml")
    content = {"recipes": [], "learning_rate": [1, 1], "weight_decay": [], "model": {}} | read_yaml(path, "--space")
    if unknown := next((key for key in content if key not in KEYS), None):
        raise ValueError(f"--space {path}: no {unknown} is searched{nearest(unknown, KEYS)} {', '.join(KEYS)}")
    lists = [content["recipes"], content["learning_rate"], content["weight_decay"]]
    models = content["model"]
    if not all(isinstance(values, list) for values in lists) or not isinstance(models, Mapping):
        raise ValueError(f"--space {path}: recipes, learning_rate and weight_decay are lists, model a mapping of them")
    for name, values in models.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"--space {path}: model.{name} is no list of choices")
    rates, decays = content["learning_rate"], content["weight_decay"]
    if len(rates) != 2 or not all(is_number(rate) for rate in rates) or not 0 < rates[0] <= rates[1]:
        raise ValueError(f"--space {path}: learning_rate {rates} must be the least and the greatest multiple, above 0")
    if not all(is_number(decay) and decay >= 0 for decay in decays) or decays != sorted(decays):
        raise ValueError(f"--space {path}: weight_decay {decays} must be numbers from 0 on, in ascending order")
    return Space(list(content["recipes"]), (float(rates[0]), float(rates[1])), list(decays), dict(models))


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")

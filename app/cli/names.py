"""Names of models, read from the source: nothing is imported for them."""

from __future__ import annotations

from collections.abc import Sequence

from app.cli.help import choices
from app.cli.mistakes import check_known

BASELINE = "Transformer"  # what every other model is measured against


def model_names() -> tuple[str, ...]:
    """Names of all models of the project, the baseline first."""
    names = choices("models", "LanguageModel")
    return tuple(sorted(names, key=lambda name: (name != BASELINE, name)))


def known_models(names: Sequence[str] | None, option: str = "--models", *other_words: str) -> tuple[str, ...]:
    """The models of these names, all for None; ValueError, naming the option, for one that does not exist.

    Args:
        names: Names as they were typed.
        option: Where they were typed.
        other_words: What the option takes beside names.
    """
    known = model_names()
    for name in names or ():
        check_known(option, "model", name, (*known, *other_words))
    return known if names is None else tuple(names)

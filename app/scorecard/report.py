"""How results come out, a scorecard's above all: as JSON, Markdown and TensorBoard's events, whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from app.output.events import new_events
from app.scorecard.card import Scorecard, card_markdown, renderables, summary_markdown, summary_table
from callbacks.atomic import write_json, write_text


def report_card(card: Scorecard, folder: Path, console: Console) -> Scorecard:
    """Print a scorecard, and write it to its folder."""
    for part in renderables(card):
        console.print(part, highlight=False)
    write_text(folder / "scorecard.md", card_markdown(card))
    write_events(folder, card)
    write_json(folder / "scorecard.json", card.plain(), indent=2)
    return card


def report_all_cards(cards: Sequence[Scorecard], out: Path, console: Console) -> None:
    """Print and write the table of all models, if there are several, and say on what machine it was measured."""
    if len(cards) > 1:
        console.print(summary_table(cards), highlight=False)
        write_text(out / "scorecard.md", summary_markdown(cards))
        write_json(out / "scorecard.json", {"cards": [card.plain() for card in cards]}, indent=2)
    machine_names = ", ".join(f"{key} {value}" for key, value in cards[0].about["machine"].items())
    console.print(machine_names, highlight=False)


def write_events(folder: Path, card: Scorecard) -> None:
    """TensorBoard's events of a scorecard."""
    with new_events(folder) as writer:
        for tag, value in card.scalars():
            writer.add_scalar(tag, value, 0)
        writer.add_text("scorecard/table", card_markdown(card), 0)

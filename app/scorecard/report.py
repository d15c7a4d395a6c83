"""How results come out, a scorecard's above all: as JSON, Markdown and TensorBoard's events, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from app.benchmark.command import write_json
from app.scorecard.card import Scorecard, card_markdown, renderables, summary_markdown, summary_table
from callbacks.atomic import save_atomically


def report(card: Scorecard, folder: Path, console: Console) -> Scorecard:
    """Print a scorecard, and write it to its folder."""
    for part in renderables(card):
        console.print(part, highlight=False)
    write_text(folder / "scorecard.md", card_markdown(card))
    write_events(folder, card)
    write_json(folder / "scorecard.json", card.plain())
    return card


def report_all(cards: Sequence[Scorecard], out: Path, console: Console) -> None:
    """Print and write the table of all models, if there are several, and say where all this was measured."""
    if len(cards) > 1:
        console.print(summary_table(cards), highlight=False)
        write_text(out / "scorecard.md", summary_markdown(cards))
        write_json(out / "scorecard.json", {"cards": [card.plain() for card in cards]})
    machine_names = ", ".join(f"{key} {value}" for key, value in cards[0].about["machine"].items())
    console.print(f"{machine_names}; results in {out}", highlight=False)


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, its first column to the left and the others to the right."""
    lines = [titles, [":--", *["--:"] * (len(titles) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_text(path: Path, text: str) -> None:
    """Write the file whole or not at all."""
    save_atomically(lambda temporary: temporary.write_text(text, encoding="utf-8"), path)


def write_events(folder: Path, card: Scorecard) -> None:
    """TensorBoard's events of a scorecard."""
    with new_events(folder) as writer:
        for tag, value in card.scalars():
            writer.add_scalar(tag, value, 0)
        writer.add_text("scorecard/table", card_markdown(card), 0)


@contextmanager
def new_events(folder: Path) -> Iterator[SummaryWriter]:
    """A writer whose events take the place of those in the folder when all are written."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".events", dir=folder) as temporary:
        with closing(SummaryWriter(temporary)) as writer:
            yield writer
        before = list(folder.glob("events.out.tfevents.*"))
        for file in Path(temporary).iterdir():
            file.replace(folder / file.name)
        for file in before:
            file.unlink()

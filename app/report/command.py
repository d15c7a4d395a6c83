"""`python -m app report`: one Markdown file, with figures, made of the files of studies.

Everything is computed from the records in those files, so the same files give the same report, byte for byte. What
needs PyTorch is imported by the functions that use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.cli.checks import check_file
from app.cli.invocation import command_line
from app.study.study import Study, read_study, study_file

MARKER = "<!-- made by `python -m app report`; edit the studies, not this file -->"


def report(files: list[Path], *, out: Path = Path("RESULTS.md")) -> int:
    """Write a report of studies: what growing gives, comparisons, scaling laws, each with the command that made it.

    Args:
        files: study.json files of compare and growth-study, scaling.json files of scaling, or folders with one.
        out: Markdown file to write; its figures go beside it, in a folder of the same name in lower case.

    Returns:
        0; files that cannot be read are named and left out, and are an error only if none is left.
    """
    check_out(out)
    studies, skipped = readable(files)
    for line in skipped:
        print(f"skipped {line}")
    if not studies:
        raise ValueError(f"FILES hold no study: {'; '.join(skipped) or 'name a study.json'}")

    from app.output.figures import save
    from app.report.sections import sections
    from callbacks.atomic import write_text

    folder = out.parent / out.stem.lower()
    parts = [section for name, study in studies for section in sections(name, study)]
    if not parts:
        raise ValueError("FILES hold no finished run yet; go on with the command of the study")
    for section in parts:
        for name, figure in section.figures.items():
            save(figure, folder / name)
    write_text(out, report_markdown(parts, folder.name, skipped))
    print(f"report in {out}")
    return 0


def check_out(out: Path) -> None:
    """Raise ValueError for a file that is not a report's."""
    check_file("--out", out)
    if out.exists() and not out.read_text(encoding="utf-8", errors="replace").startswith(MARKER):
        raise ValueError(f"--out {out} exists and was not made by report; name another file, or move that one away")


def readable(files: Sequence[Path]) -> tuple[list[tuple[str, Study]], list[str]]:
    """The studies by name, and a line for each file that is none."""
    studies: list[tuple[str, Study]] = []
    skipped = []
    for path in files:
        if not path.exists():
            raise ValueError(f"FILES {path} does not exist; name a study.json, or the folder of a study")
        try:
            file = study_file(path)
            name = file.parent.name if file.stem == "study" else file.stem
            if name in dict(studies):
                raise ValueError(f"{path}: there is another study named {name}; rename the file")
            studies.append((name, read_study(file)))
        except ValueError as error:
            skipped.append(str(error))
    return studies, skipped


def report_markdown(sections: Sequence[Any], folder: str, skipped: Sequence[str]) -> str:
    """The whole report: the answer of a growth study first, if there is one."""
    answers = [section.answer for section in sections if section.answer]
    parts = [MARKER, "# Results", *answers, f"`{command_line()}` made this file from the studies below."]
    for section in sections:
        parts += [f"## {section.title}", f"`{section.command}`: {section.about}"]
        parts += [f"![{name.removesuffix('.png')}]({folder}/{name})" for name in section.figures]
        parts += section.paragraphs
    if skipped:
        parts += ["## Left out", "\n".join(f"- {line}" for line in skipped)]
    return "\n\n".join(parts) + "\n"

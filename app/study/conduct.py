"""What studies share: checks of their options, and carrying a plan out from the first run to the report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.cli.checks import check_folder
from app.cli.mistakes import explained
from app.cli.options import OptionGroup, Parser
from app.output.tables import WIDE, new_console
from app.study.study import Study

OURS = frozenset({  # of --trainer.*
    "max_steps", "max_epochs", "min_steps", "min_epochs", "max_time", "val_check_interval", "check_val_every_n_epoch",
    "limit_train_batches", "callbacks", "logger", "fast_dev_run", "overfit_batches", "default_root_dir",
    "accumulate_grad_batches",
})  # fmt: skip


def parsed(kind: Callable[..., Any], prefix: str, group: OptionGroup, help_command: str) -> dict[str, Any]:
    """What differs from a constructor's own defaults: the group's, and what was typed. UsageError if it will not do."""
    parser = Parser(allow_abbrev=False)
    parser.add_class_arguments(kind, prefix, skip=set(group.ours))
    own = parser.get_defaults()[prefix].as_dict()
    parser.set_defaults({f"{prefix}.{name}": value for name, value in group.defaults.items()})
    for option in group.options:
        name = option.partition("=")[0]
        if name.removeprefix(f"--{prefix}.").partition(".")[0].removesuffix("+") in group.ours:
            raise ValueError(f"{name} is given by the study's own options; leave it out")
    with explained(help_command):
        values = parser.parse_args(list(group.options))[prefix].as_dict()
    return {name: value for name, value in values.items() if name in group.defaults or value != own[name]}


def check_place_and_trainer(out: Path, trainer: OptionGroup, print_commands: bool, help_command: str) -> None:
    """Raise ValueError if no run could be carried out with these options of the Trainer, or kept in this folder.

    Commands that are only printed may be meant for another machine, with a GPU.
    """
    from app.run.checks import Trainer, check_trainer, explaining
    from app.run.fit import prepare_lightning

    options = parsed(Trainer, "trainer", trainer, help_command)
    check_trainer(options)
    if print_commands:
        return
    check_folder("--out", out)
    prepare_lightning()
    simple = str | int | float | list  # not what would have to be built first
    built = {name: value for name, value in options.items() if isinstance(value, simple) and name != "plugins"}
    with explaining(built):
        Trainer(**built | {"logger": False, "enable_checkpointing": False})


def conduct(
    study: Study,
    out: Path,
    workers: int | None,
    print_commands: bool,
    conclude: Callable[[Study, Path, Any], None],
    extend: Callable[[Study], None] = lambda study: None,
) -> int:
    """Carry a study out, or print its commands.

    Args:
        study: With its plan.
        out: Its folder.
        workers: Runs side by side; None for one a device.
        print_commands: Only print the commands of the runs that are not done.
        conclude: Adds the findings to the study, writes its files into the folder, and prints to a rich console.
        extend: Adds runs to the plan that finished ones decide on, if all of these are there.

    Returns:
        The exit code: 1 if a run failed.
    """
    from app.run.folders import held
    from app.study.processes import default_workers, execute, plain_commands

    if print_commands:
        plan = extended(study, out, extend).plan
        print(plain_commands([run for run in plan if run.name not in study.records], out))
        return 0
    console = new_console(WIDE)
    failures: list[str] = []
    with held(out, "--out"):
        tried: set[str] = set()
        while new := [run for run in extended(study, out, extend).plan if run.name not in tried]:
            study.save(out)
            failures += execute(study, new, out, workers or default_workers(), console)
            tried |= {run.name for run in new}
        conclude(study, out, console)
        study.save(out)
        console.print(f"results in {out}", highlight=False)
    for line in failures:
        print(f"error: {line}", file=sys.stderr)
    return 1 if failures else 0


def extended(study: Study, out: Path, extend: Callable[[Study], None]) -> Study:
    """The study with what is done of its plan, extended by what that decides, as long as that is done, too."""
    from app.study.processes import resumed

    known = -1
    while known < len(resumed(study, out).records):
        known = len(study.records)
        extend(study)
    return study

"""Grow a model in the middle of a fit, by a schedule of optimizer steps and sizes.

The event happens before a batch, where no graph is alive and no accumulation is half done: new parameters take the
old ones' place in the model and in the optimizer, so schedulers, clipping and loss scaling need not know, nor growth of
a strategy (`callbacks.sharding.whole`). Sizes are compared, not counted, so that a resumed run never grows twice. The
event waits for the device, to tell what it changed; as it comes once a growth, that is not worth sparing.
"""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from itertools import pairwise
from typing import Any

import lightning as L

from callbacks.common import in_fit_validation, log_text, logged_step, total_steps
from callbacks.console import say, tell
from callbacks.lightning_internals import completes_step
from callbacks.sharding import whole
from models.base import LanguageModel
from models.carry import Carry
from models.growth import (
    LAYERS,
    GrowableModel,
    GrowthRules,
    Init,
    LayerInit,
    Sizes,
    TauPolicy,
    check_sizes,
    grown_sizes,
)


class Growth(L.Callback):
    """Grows a model at given steps; without steps it does nothing.

    Args:
        steps: Optimizer steps before which to grow, increasing.
        num_param_tokens: Sizes of the attention projections, one for each step.
        num_ffn_param_tokens: Sizes of the feed-forward networks, one for each step.
        num_layers: Numbers of blocks, one for each step; every model has them.
        factor: Numbers of parameter tokens as multiples of the first ones, one for each step, for groups whose sizes
            are not given.
        init: How parameter tokens are added; split keeps the function and lets them learn, zero_keys unless tau jumps.
        split_noise: Noise on the values of split rows, as a multiple of their root mean square.
        tau: Whether the scale becomes the root of the new size (sqrt_n, exact where rows are split, else a jump), does
            so within the re-warm (ramped), or stays (frozen); the last two are exact.
        carry: What becomes of the optimizer's moments: per_row lets copies have their rows' and corrects rows without
            any for their age, asymmetric lets all copies but the first begin without, mean starts second moments at
            the old rows' mean, zeros pads, reset drops all state.
        rewarm_steps: Steps in which the learning rate of rows without moments rises to that of the others.
        layer_init: Whether blocks are added as copies (stack), or as copies that add nothing at first (exact).
    """

    def __init__(
        self,
        steps: list[int] | None = None,
        num_param_tokens: list[int] | None = None,
        num_ffn_param_tokens: list[int] | None = None,
        num_layers: list[int] | None = None,
        factor: list[float] | None = None,
        init: Init = "split",
        split_noise: float = 1.0,
        tau: TauPolicy = "sqrt_n",
        carry: Carry = "per_row",
        rewarm_steps: int = 50,
        layer_init: LayerInit = "stack",
    ) -> None:
        self.steps = steps or []
        self.sizes = {
            "num_param_tokens": num_param_tokens, "num_ffn_param_tokens": num_ffn_param_tokens, LAYERS: num_layers,
        }  # fmt: skip
        self.factor = factor
        self.rules = GrowthRules(init, split_noise, tau, carry, rewarm_steps, layer_init)
        self._check_schedule()
        self._resumed_at = 0

    @property
    def options(self) -> dict[str, Any]:
        """What the schedule was made of, as plain values: without steps nothing else."""
        given = {"factor": self.factor} | self.sizes | asdict(self.rules) if self.steps else {}
        return {"steps": self.steps} | {name: value for name, value in given.items() if value is not None}

    def _check_schedule(self) -> None:
        if any(later <= earlier for earlier, later in pairwise(self.steps)) or (self.steps and self.steps[0] < 1):
            raise ValueError(f"--growth.steps {self.steps} must increase and start at 1 or later")
        given = {name: sizes for name, sizes in self.sizes.items() if sizes} | (
            {"factor": self.factor} if self.factor else {}
        )
        for name, values in given.items():
            if len(values) != len(self.steps):
                raise ValueError(
                    f"--growth.{name} has {len(values)} entries for {len(self.steps)} --growth.steps; give one each"
                )
            if not all(0 < value < math.inf for value in values):
                raise ValueError(f"--growth.{name} {values} must hold positive numbers")
            if any(later < earlier for earlier, later in pairwise(values)):
                raise ValueError(f"--growth.{name} {values} shrinks; growth only adds")
        if self.steps and not given:
            raise ValueError(
                f"--growth.steps needs sizes: {', '.join(f'--growth.{name}' for name in (*self.sizes, 'factor'))}"
            )
        self.rules.check("--growth.")
        for rule in fields(GrowthRules) if not self.steps else ():
            if getattr(self.rules, rule.name) != rule.default:
                raise ValueError(
                    f"--growth.{rule.name} {getattr(self.rules, rule.name)} changes nothing without --growth.steps; "
                    f"give steps, or --growth.{rule.name} {rule.default}, the default"
                )

    def target(self, first: Sizes, step: int) -> Sizes:
        """Sizes scheduled for `step`, given the first sizes."""
        due = sum(s <= step for s in self.steps)
        sizes = dict(first)
        for group in {*sizes, *(group for group, scheduled in self.sizes.items() if scheduled)} if due else ():
            if scheduled := self.sizes.get(group):
                sizes[group] = scheduled[due - 1]
            elif self.factor and group != LAYERS:
                sizes[group] = round(first[group] * self.factor[due - 1])
        return sizes

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse what cannot work before anything is trained."""
        if not self.steps:
            return
        if not isinstance(pl_module, GrowableModel):
            raise ValueError(
                f"--growth.steps: {type(pl_module).__name__} does not grow; extend models.growth.GrowableModel"
            )
        if self.factor and not pl_module.parameter_token_sizes():
            raise ValueError(
                f"--growth.factor: {type(pl_module).__name__} has no parameter tokens; use --growth.num_layers, or "
                "--model TokenFormer"
            )
        first = pl_module.initial_sizes()
        for step in self.steps:
            check_sizes(first, self.target(first, step), "--growth.")
        self._check_time(0 if trainer.fast_dev_run else total_steps(trainer))  # type: ignore[attr-defined]
        self._check_growth(pl_module)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Learn at which step the run goes on."""
        self._resumed_at = checkpoint["global_step"]

    def _check_time(self, end: int) -> None:
        """Raise ValueError if all growth lies beyond the last step, and say so of a part of it; 0 is no last step."""
        never = [step for step in self.steps if 0 < end <= step]
        if len(never) == len(self.steps):
            raise ValueError(
                f"--growth.steps {self.steps}: the run ends at step {end}, before any growth; give earlier steps or "
                "more --trainer.max_steps"
            )
        if never:
            tell(f"the run ends at step {end}, before growth at {', '.join(map(str, never))}")

    def _check_growth(self, model: GrowableModel) -> None:
        """Raise ValueError for a step that the run is past, or whose sizes the model has already by then."""
        sizes = model.growing_sizes()
        for step in self.steps:
            target = self.target(model.initial_sizes(), step)
            grows = any(size > sizes[group] for group, size in target.items())
            if grows and step < self._resumed_at:
                raise ValueError(
                    f"--growth.steps {step}: the run goes on at step {self._resumed_at}, and has not grown before; "
                    "give that step or a later one"
                )
            if not grows and step >= self._resumed_at:
                raise ValueError(
                    f"--growth.steps {step}: nothing grows to {_words(target)}, as the model has {_words(sizes)} by "
                    "then; give larger sizes, or leave the step out"
                )
            sizes = {group: max(size, target[group]) for group, size in sizes.items()}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Grow if the schedule is ahead of the model and no accumulation is under way."""
        if not self.steps or batch_idx % trainer.accumulate_grad_batches:
            return
        assert isinstance(pl_module, GrowableModel)
        current = pl_module.growing_sizes()
        target = self.target(pl_module.initial_sizes(), trainer.global_step)
        sizes = {group: size for group, size in target.items() if size > current[group]}
        if sizes:
            self._grow(trainer, pl_module, sizes)

    def _grow(self, trainer: L.Trainer, pl_module: GrowableModel, sizes: Sizes) -> None:
        with whole(trainer, pl_module):
            event = pl_module.grow(sizes, trainer.optimizers[0], step=trainer.global_step, rules=self.rules)
        self._report(trainer, pl_module, event)

    def _report(self, trainer: L.Trainer, pl_module: GrowableModel, event: dict[str, Any]) -> None:
        change = max(event["relative_change"])
        text = (
            f"grown before step {event['step'] + 1}: {grown_sizes(event)}; {pl_module.num_parameters():,} parameters; "
            f"largest relative change of a layer's output {change:.1e}, of a logit {event['logit_change']:.1e} "
            "(absolute)"
        )
        say(text)
        metrics = {f"growth/{group}": float(size) for group, size in event["to"].items()}
        metrics |= {"growth/relative_change": change, "growth/logit_change": event["logit_change"]}
        metrics |= {f"growth/relative_change/{i}": value for i, value in enumerate(event["relative_change"])}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=event["step"])
        log_text(trainer, "growth/event", text, event["step"])

    # Sizes are steps in their curves: there are points just before and at each growth.

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the sizes that a fit begins with, or goes on with after growth on disk."""
        assert isinstance(pl_module, LanguageModel)
        is_grown_on_disk = any(event["step"] == trainer.global_step for event in pl_module.growth_events)
        if trainer.global_step == 0 or is_grown_on_disk:
            self._log_sizes(trainer, pl_module, trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the sizes before a growth."""
        assert isinstance(pl_module, LanguageModel)
        if trainer.global_step in self.steps and completes_step(trainer):
            self._log_sizes(trainer, pl_module, logged_step(trainer))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the sizes, so that their curve goes as far as that of quality."""
        assert isinstance(pl_module, LanguageModel)
        if in_fit_validation(trainer) and trainer.global_step not in self.steps:
            self._log_sizes(trainer, pl_module, logged_step(trainer))

    def _log_sizes(self, trainer: L.Trainer, pl_module: LanguageModel, step: int) -> None:
        if self.steps or pl_module.growth_events:
            sizes = {f"growth/{group}": float(size) for group, size in pl_module.growing_sizes().items()}
            for logger in trainer.loggers:
                logger.log_metrics(sizes, step=step)


def _words(sizes: Sizes) -> str:
    return ", ".join(f"{group} {size}" for group, size in sizes.items())

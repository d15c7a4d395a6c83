"""Text that the model writes after each validation, in TensorBoard and W&B: what the curves mean.

Sampling draws from a generator of its own, seeded by (seed, step), so that training is the same with it and without.
"""

from __future__ import annotations

import lightning as L
import torch

from callbacks.common import TextData, log_text, logged_step, text_loggers, text_of
from models.base import LanguageModel, mixed_seed


class Samples(L.Callback):
    """Logs text as samples/text, for data that has characters.

    Args:
        prompt: Text to continue; the default is a line break, or the first character there is.
        max_new_tokens: Characters to write; 0 switches samples off.
        temperature: Divides the logits; 0 takes the likeliest character.
        top_k: Choose among the k likeliest characters only.
    """

    def __init__(
        self, prompt: str | None = None, max_new_tokens: int = 200, temperature: float = 0.8, top_k: int | None = None
    ) -> None:
        for name, value, least in (("max_new_tokens", max_new_tokens, 0), ("temperature", temperature, 0)):
            if value < least:
                raise ValueError(f"--samples.{name} is {value}; it must be at least {least}")
        if prompt == "" or (top_k is not None and top_k < 1):
            raise ValueError("--samples.prompt must not be empty, and --samples.top_k must be at least 1")
        self.prompt, self.max_new_tokens, self.temperature, self.top_k = prompt, max_new_tokens, temperature, top_k
        self._text: TextData | None = None
        self._prompt_tokens: list[int] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read the prompt; ValueError if the text has no such characters."""
        self._text, self._prompt_tokens = text_of(trainer) if self.max_new_tokens else None, []
        if self._text is None:
            return
        vocabulary = self._text.vocabulary
        try:
            self._prompt_tokens = self._text.encode(self.prompt or ("\n" if "\n" in vocabulary else vocabulary[0]))
        except ValueError as error:
            raise ValueError(f"--samples.prompt: {error}") from error

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write, on the first process, if each process has the whole model."""
        assert isinstance(pl_module, LanguageModel)
        if not (self._text and trainer.is_global_zero and text_loggers(trainer)) or pl_module.is_sharded():
            return
        log_text(trainer, "samples/text", self.write(trainer, pl_module), logged_step(trainer), verbatim=True)

    def write(self, trainer: L.Trainer, pl_module: LanguageModel) -> str:
        """The prompt and its continuation."""
        assert self._text
        generator = torch.Generator(pl_module.device).manual_seed(mixed_seed(pl_module.seed, trainer.global_step))
        prompt_BT = torch.tensor([self._prompt_tokens], device=pl_module.device)
        (tokens_T,) = pl_module.generate(prompt_BT, self.max_new_tokens, self.temperature, self.top_k, generator)
        return self._text.decode(tokens_T.tolist())

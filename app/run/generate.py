"""`python -m app generate`: write text with a checkpoint, character by character as it is made."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from app.cli.checks import at_least_one
from app.machine import Device, MatmulPrecision, check_compiler, find_device, float32_products
from app.output.progress import announce

if TYPE_CHECKING:  # else torch is imported inside functions: `generate --help` answers at once
    from models.base import LanguageModel

STDIN = "-"  # as a file: standard input
Precision = Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true"]


def generate(
    ckpt: Path,
    *,
    prompt: str | None = None,
    prompt_file: Path | None = None,
    num_samples: int = 1,
    max_new_tokens: int = 500,
    stop: str | None = None,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 1,
    device: Device = "auto",
    precision: Precision = "32-true",
    matmul_precision: MatmulPrecision = "highest",
    compile: bool = False,
) -> None:
    """Continue a prompt with the model in CKPT, whose vocabulary the checkpoint tells.

    Args:
        ckpt: A checkpoint of a model trained on text: a file, a run folder, last, or best.
        prompt: Text to continue, of characters in the vocabulary; by default a line break, or the first character
            there is.
        prompt_file: UTF-8 file with the text to continue, to the last character; - is standard input.
        num_samples: Continuations, written side by side; one comes as it is made, several at the end.
        max_new_tokens: Characters to write.
        stop: Text after which a continuation ends.
        temperature: Divides the logits; 0 always takes the likeliest character.
        top_k: Choose among the k likeliest characters only.
        seed: Seed of the random choice; the same seed writes the same text on the same machine.
        device: Where the model runs; auto takes a GPU if there is one.
        precision: Numbers that it computes with, in Lightning's names; mixed keeps the weights in float32.
        matmul_precision: Precision of products of float32 matrices: with high a GPU takes TF32, with medium bfloat16.
        compile: Compile the step from one character to the next, which pays for long texts; it takes a minute or so.
    """
    check_numbers(temperature, top_k, seed, num_samples=num_samples, max_new_tokens=max_new_tokens)
    check_compiler(compile)
    given = read_prompt(prompt, prompt_file)
    import torch

    from app.run.checkpoints import load_model, model_name, read_checkpoint, vocabulary
    from app.run.folders import find_checkpoint

    ckpt, place = find_checkpoint(str(ckpt), option="CKPT"), find_device(device)
    checkpoint = read_checkpoint(ckpt, "CKPT")
    characters = vocabulary(checkpoint)
    if characters is None:
        raise ValueError(f"CKPT {ckpt} ({model_name(checkpoint)}) was not trained on text, so it cannot write any")
    text = ("\n" if "\n" in characters else characters[0]) if given.text is None else given.text
    tokens = encoded(given.option, text, characters)
    if stop is not None:
        encoded("--stop", stop, characters)
    model, autocast = in_precision(load_model(checkpoint, f"CKPT {ckpt}").to(place), precision)
    prompt_BT = torch.tensor([tokens], device=place).expand(num_samples, -1)
    generator = torch.Generator(place).manual_seed(seed)
    meter = Meter(len(text), num_samples)
    with autocast, float32_products(matmul_precision):
        stream = model.stream(prompt_BT, max_new_tokens, temperature, top_k, generator, compile)
        letters_B = (tuple(characters[token] for token in token_B.tolist()) for token_B in stream)
        write(text, meter.watched(letters_B), num_samples, stop)
    announce(meter.report(compile), sys.stderr)


# The prompt, and what else is asked for -------------------------------------------------------------------------------


class Prompt(NamedTuple):
    """A text to continue, if one was given, and the option that it came by."""

    text: str | None
    option: str


def check_numbers(temperature: float, top_k: int | None, seed: int, *, num_samples: int, max_new_tokens: int) -> None:
    """Raise ValueError for the first number that will not do."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"--temperature is {temperature}; it must be a number of at least 0")
    if max_new_tokens < 0:
        raise ValueError(f"--max_new_tokens is {max_new_tokens}; it must be at least 0")
    at_least_one(top_k=top_k, num_samples=num_samples)
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed {seed} is not between 0 and 2^63 - 1")


def read_prompt(prompt: str | None, file: Path | None) -> Prompt:
    """The text to continue, from the command line, a file, or standard input."""
    if file is None:
        return Prompt(prompt, "--prompt")
    option = f"--prompt_file {file}"
    if prompt is not None:
        raise ValueError(f"{option} and --prompt both say what to continue; give one of them")
    try:
        raw = sys.stdin.buffer.read() if str(file) == STDIN else file.read_bytes()
        return Prompt(raw.decode("utf-8-sig"), option)
    except UnicodeDecodeError as error:
        raise ValueError(f"{option} is not UTF-8 (byte {error.start}: {error.reason}); give UTF-8 text") from error
    except OSError as error:
        raise ValueError(
            f"{option} cannot be read ({error.strerror}); name a text file, or - for standard input"
        ) from error


def encoded(option: str, text: str, characters: str) -> list[int]:
    """Tokens of a text; ValueError if it is empty or has characters that the model does not know."""
    from datamodules.char_text import shown

    token_of = {character: token for token, character in enumerate(characters)}
    if unknown := sorted(set(text) - token_of.keys()):
        raise ValueError(
            f"{option} has characters the model has never seen: {shown(unknown)}; it knows {shown(characters)}"
        )
    if not text:
        raise ValueError(f"{option} is empty; give at least one character")
    return [token_of[character] for character in text]


def in_precision(model: LanguageModel, precision: Precision) -> tuple[LanguageModel, AbstractContextManager[Any]]:
    """The model, its weights in that precision, and the context in which it computes with it."""
    import torch

    width, _, kind = precision.partition("-")
    dtype = {"bf16": torch.bfloat16, "16": torch.float16, "32": torch.float32}[width]
    if kind == "mixed":
        return model, torch.autocast(model.device.type, dtype)
    return model.to(dtype), nullcontext()


# Writing --------------------------------------------------------------------------------------------------------------


class Meter:
    """Measures how fast characters are read and written; it starts when it is made."""

    def __init__(self, prompt_length: int, num_samples: int) -> None:
        self.prompt_length, self.num_samples = prompt_length, num_samples
        self.marks = [time.perf_counter()]

    def watched(self, letters_B: Iterable[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
        """The characters as they come, the first of which comes when the prompt has been read."""
        for letter_B in letters_B:
            self.marks.append(time.perf_counter())
            yield letter_B
        if len(self.marks) == 1:
            self.marks.append(time.perf_counter())

    def report(self, compiled: bool) -> str:
        """Characters a second, of all samples together; the first step tells how long it took to compile."""
        begin, read, *written = self.marks
        parts = [f"prompt: {self.speed(self.prompt_length, read - begin)}"]
        if compiled and written:
            parts.append(f"compiled in {written[0] - read:.1f} s")
            read, *written = written
        if written:
            parts.append(f"text: {self.speed(len(written), written[-1] - read)}")
        return ", ".join(parts)

    def speed(self, length: int, seconds: float) -> str:
        """Characters of all samples, and how many a second."""
        number = length * self.num_samples
        return f"{number:,} character{'s' * (number > 1)} at {number / max(seconds, 1e-9):,.0f} a second"


def write(prompt: str, letters_B: Iterable[tuple[str, ...]], num_samples: int, stop: str | None) -> None:
    """Print the prompt and its continuations, each to the first `stop`: one as it comes, several at the end."""
    texts = [prompt] * num_samples
    is_done = [False] * num_samples
    is_alone = num_samples == 1
    if is_alone:
        print(prompt, end="", flush=True)
    for letter_B in letters_B:
        for number, letter in enumerate(letter_B):
            if not is_done[number]:
                texts[number] += letter
                is_done[number] = stop is not None and texts[number].endswith(stop)
        if is_alone:
            print(letter_B[0], end="", flush=True)
        if all(is_done):
            break
    if is_alone:
        print()
    else:
        print("\n\n".join(f"--- {number} of {num_samples}\n{text}" for number, text in enumerate(texts, 1)))

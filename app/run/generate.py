"""`python -m app generate`: write text with a checkpoint, character by character as it is made."""

from __future__ import annotations

import math
from pathlib import Path

from app.cli.checks import at_least_one

# torch is imported inside the function: `generate --help` answers at once.


def generate(
    ckpt: Path,
    *,
    prompt: str | None = None,
    max_new_tokens: int = 500,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 1,
) -> None:
    """Continue a prompt with the model in CKPT, whose vocabulary the checkpoint tells.

    Args:
        ckpt: A checkpoint of a model trained on text: a file, a run folder, last, or best.
        prompt: Text to continue, of characters in the vocabulary; by default a line break, or the first character
            there is.
        max_new_tokens: Characters to write.
        temperature: Divides the logits; 0 always takes the likeliest character.
        top_k: Choose among the k likeliest characters only.
        seed: Seed of the random choice; the same seed writes the same text.
    """
    import torch

    from app.run.checkpoints import load_model, model_name, read_checkpoint, vocabulary
    from app.run.folders import find_checkpoint
    from datamodules.char_text import shown

    if not 0 <= temperature < math.inf:
        raise ValueError(f"--temperature is {temperature}; it must be a number of at least 0")
    if max_new_tokens < 0:
        raise ValueError(f"--max_new_tokens is {max_new_tokens}; it must be at least 0")
    at_least_one(top_k=top_k)
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed {seed} is not between 0 and 2^63 - 1")
    ckpt = find_checkpoint(str(ckpt), option="CKPT")
    checkpoint = read_checkpoint(ckpt, "CKPT")
    characters = vocabulary(checkpoint)
    if characters is None:
        raise ValueError(f"CKPT {ckpt} ({model_name(checkpoint)}) was not trained on text, so it cannot write any")
    if prompt is None:
        prompt = "\n" if "\n" in characters else characters[0]
    token_of = {character: token for token, character in enumerate(characters)}
    if unknown := sorted(set(prompt) - token_of.keys()):
        raise ValueError(
            f"--prompt has characters the model has never seen: {shown(unknown)}; it knows {shown(characters)}"
        )
    if not prompt:
        raise ValueError("--prompt is empty; give at least one character")
    model = load_model(checkpoint, f"CKPT {ckpt}")
    prompt_BT = torch.tensor([[token_of[character] for character in prompt]])
    generator = torch.Generator().manual_seed(seed)
    print(prompt, end="", flush=True)
    for token_B in model.generate(prompt_BT, max_new_tokens, temperature, top_k, generator):
        print(characters[int(token_B)], end="", flush=True)
    print()

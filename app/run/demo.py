"""`python -m app demo`: the newcomer's first five minutes: train, grow once, read, and look at the dashboard."""

from __future__ import annotations

from pathlib import Path

EXPERIMENT = Path(__file__).parents[1] / "configs" / "experiment" / "demo.yaml"


def demo() -> int:
    """Train a small TokenFormer on Python's own library, grow it in the middle, and read what it writes."""
    from app.run.fit import run
    from app.run.folders import find_checkpoint
    from app.run.generate import generate

    print("Greenhouse demo: a small TokenFormer learns to write Python, and grows once on the way.\n", flush=True)
    if code := run("fit", [f"--config={EXPERIMENT}"]):
        return code
    checkpoint = find_checkpoint("best", "runs/demo")
    print("\nWhat it writes:\n", flush=True)
    generate(checkpoint, prompt="def ", max_new_tokens=300)
    print(
        "\nNext:\n"
        "  .venv/bin/tensorboard --logdir runs          # the dashboard: curves, growth, samples, hyper-parameters\n"
        f"  .venv/bin/python -m app generate {checkpoint} --prompt 'class '\n"
        f"  .venv/bin/python -m app grow {checkpoint} runs/demo/grown.ckpt --factor 2\n"
        "  .venv/bin/python -m app --help"
    )
    return 0

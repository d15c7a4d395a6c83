"""A growth study without training: a plan at costs that are made up, and records of losses that a law gives."""

from __future__ import annotations

import math
import random
from dataclasses import asdict

from app.growth_study.arms import Design, Size
from app.growth_study.recipes import GROWN, SCRATCH
from app.growth_study.runs import Setting, arms_of, extend
from app.study.study import Study

MODEL = {"d_model": 8, "num_layers": 1, "num_param_tokens": 64, "num_ffn_param_tokens": 256}
OPTIM = {"learning_rate": 1e-2, "warmup_steps": 20, "schedule": "wsd", "decay_ratio": 0.25}
BEST_RATE = 2.0
OF_A_STEP = 2048  # tokens


def design(**changes):
    """A whole study of four seeds."""
    plain = {
        "flops": 1e12, "sizes": [1.0, 2.0, 4.0, 8.0], "depths": [2], "shares": [0.1, 0.05, 0.4],
        "chain_shares": [0.15, 0.2, 0.3], "recipes": ["zero_keys", "published", "exact_layers", "once"],
        "scratch_budgets": [0.5, 2.0], "learning_rates": [0.5, 1.0, 2.0, 4.0, 8.0], "seeds": [1, 2, 3, 4],
    }  # fmt: skip
    return Design(**plain | changes)


def setting(**changes):
    """What all runs have in common, with a cost of each size."""
    sizes = [Size(tokens, depth) for tokens in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0) for depth in (1, 2, 4)]
    known = {size: (1e9 * (0.3 + 0.7 * size.tokens * size.depth), round(40_000 * sum(size))) for size in sizes}
    plain = {
        "model": MODEL, "data": {"corpus": "words", "seq_len": 128, "batch_size": 16}, "optim": OPTIM, "trainer": (),
        "vocab_size": 50, "train_characters": 5_000_000, "val_batches": 2,
        "test_batches": 4, "known": known,
    }  # fmt: skip
    return Setting(**plain | changes)


def curve(size, flops, budget=1e12):
    """Loss from scratch: straight in log FLOPs, least at twice the reference's parameter tokens and at one layer."""
    tokens, depth = size
    return 2.2 + 0.05 * math.log2(tokens / 2) ** 2 + 0.1 * (depth - 1) - 0.2 * math.log(flops / budget)


def gain(run):
    """What the toy's growing gives: more the larger the size, less the later; nothing by other recipes."""
    labels = run.labels
    if labels["recipe"] == SCRATCH:
        return 0.0
    if labels["recipe"] not in (GROWN, "branch"):
        return -0.05
    if labels["depth"] > 1:
        return -0.08 - 0.1 * labels["share"]
    return 0.1 * math.log2(labels["tokens"]) + 0.1 * (0.1 - labels["share"]) * (len(labels["stages"]) == 2)


def record(run, cost, gained=gain):
    """The record of a planned run."""
    labels, steps = run.labels, sum(run.labels["stages"])
    noise = random.Random(run.name).uniform(-0.01, 0.01)
    rate = 0.03 * math.log2(labels["factor"] / BEST_RATE) ** 2
    stages = [count * flops for count, flops in zip(labels["stages"], cost, strict=True)]
    whole = sum(stages)
    loss = curve((labels["tokens"], labels["depth"]), whole) - gained(run) + noise + rate
    parts = [n / 20 for n in range(1, 21)]
    history = [
        {"step": round(p * steps), "flops": p * whole, "val/bits_per_char": loss - 0.2 * math.log(p)} for p in parts
    ]
    spent = [sum(stages[:number]) for number in range(1, len(stages))]
    events = [{"step": 1, "flops": each, "bits_per_char_before": 2.5, "bits_per_char_after": 2.5} for each in spent]
    return {
        "status": "finished", "step": steps, "tokens": steps * OF_A_STEP, "flops": whole, "seconds": 40.0,
        "parameters": labels["parameters"][-1], "history": history, "final": {"val/loss": loss * math.log(2)},
        "test": {"test/bits_per_char": loss}, "growth_events": events, "device": "cpu", "versions": {"torch": "2"},
        "precision": "32-true",
    }  # fmt: skip


def study(gained=gain, **changes):
    """A finished study."""
    asked, common = design(**changes), setting()
    arms = arms_of(asked, common)
    by_name = {arm.name: arm for arm in arms}
    options = {"setting": common.plain(), "design": asdict(asked)}
    found = Study("growth-study", "python -m app growth-study", options, [])
    known = -1
    while known < len(found.records):
        known = len(found.records)
        extend(found, asked, common, arms)
        for run in found.plan:
            costs = [common.cost(size) for size in by_name[run.labels["arm"]].sizes]
            found.records.setdefault(run.name, record(run, costs, gained))
    return found

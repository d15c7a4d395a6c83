"""The ratios that `bench` measures on a device, as rows to read: a target that is missed is no failure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from app.gpu.checks import Check
from app.gpu.runs import Bench, RunError, failed
from app.output.numbers import three_digits

PART = "bench"
SEQ_LENS = "[256,4096]"  # of mixers and inference


def ratios(names: tuple[str, ...], bench: Bench, repeats: int) -> Iterator[Check]:
    """A row for each benchmark, and for each model but the baseline and quantity of `mixers` and `inference`."""
    models = ["--models", f"[{','.join(names)}]", "--seq_lens", SEQ_LENS]
    compiled = ["--compile", "true"] if bench.compile else []
    for what, options in (("quick", []), ("mixers", models), ("inference", [*models, *compiled])):
        path = bench.folder / f"{what}.json"
        try:
            bench.call(
                "bench", what, "--repeats", str(repeats), "--device", bench.device, "--json", str(path), *options
            )
        except RunError as error:
            yield failed(PART, f"bench {what}", "ratios", error)
            continue
        for result in json.loads(path.read_text(encoding="utf-8"))["results"]:
            if "points" not in result or result["model"] != result["baseline"]:
                yield row(result)


def row(result: dict[str, Any]) -> Check:
    """One benchmark's ratio, or a model's at several lengths, from the JSON file of `bench`."""
    if "points" not in result:
        wanted = f"<= {result['target']:g}"
        return Check(PART, f"{result['name']}: {result['compares']}", spread(result), wanted)
    found = ", ".join(f"{spread(point)} at T {point['seq_len']:,}" for point in result["points"])
    return Check(PART, f"{result['name']}: {result['model']} / {result['baseline']}", found)


def spread(ratio: dict[str, float]) -> str:
    """The median of a ratio, its least and its greatest."""
    return f"{three_digits(ratio['median'])} [{three_digits(ratio['min'])}, {three_digits(ratio['max'])}]"

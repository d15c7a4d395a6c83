"""What happens beside training: growth, checkpoints, curves, samples, records, and what a person reads.

A name is imported when it is first asked for, so that `callbacks.atomic` and `callbacks.record_file`, which reports
use, load neither torch nor Lightning.
"""

from importlib import import_module
from typing import Any

MODULES = {
    "AtomicCheckpointIO": "checkpoints",
    "Checkpoints": "checkpoints",
    "Growth": "growth",
    "Narrator": "console",
    "Predictions": "predictions",
    "Record": "records",
    "RunStopped": "checkpoints",
    "Samples": "samples",
    "ScalingCurves": "scaling_curves",
    "TensorBoard": "dashboard",
    "Throughput": "throughput",
    "TimeLimit": "time_limit",
}
__all__ = list(MODULES)


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__

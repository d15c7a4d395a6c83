"""What happens beside training: growth, checkpoints, curves, samples, records, and what a person reads."""

from callbacks.checkpoints import AtomicCheckpointIO, Checkpoints, RunStopped
from callbacks.console import Narrator
from callbacks.growth import Growth
from callbacks.predictions import Predictions
from callbacks.records import Record
from callbacks.samples import Samples
from callbacks.scaling_curves import ScalingCurves
from callbacks.throughput import Throughput

__all__ = [
    "AtomicCheckpointIO",
    "Checkpoints",
    "Growth",
    "Narrator",
    "Predictions",
    "Record",
    "RunStopped",
    "Samples",
    "ScalingCurves",
    "Throughput",
]

"""TrajectoryLM: recall of what came next after the same last symbols."""

from models.trajectory.model import TrajectoryLM, TrajectoryMemory

__all__ = ["TrajectoryLM", "TrajectoryMemory"]

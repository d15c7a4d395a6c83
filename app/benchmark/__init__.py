"""`bench`: speed, as ratios of things timed in turn."""

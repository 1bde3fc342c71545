"""SARM, the stage-aware reward model for robot video, on a Ray cluster."""

__version__ = "0.1.0"

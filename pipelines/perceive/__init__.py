"""Token perception of one's own examples, without training."""

from pipelines.perceive.one import perceive

__all__ = ("perceive",)

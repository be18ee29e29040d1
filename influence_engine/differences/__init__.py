"""Base model against fine-tuned model."""

from influence_engine.differences.modules import BaseDifference

__all__ = ["BaseDifference"]

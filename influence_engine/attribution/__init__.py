"""Explaining predictions by the training examples that drove them, from an index."""

from influence_engine.attribution.attributor import Attributor
from influence_engine.attribution.build_replay_basis import build_basis
from influence_engine.attribution.result import Attribution

__all__ = ["Attribution", "Attributor", "build_basis"]

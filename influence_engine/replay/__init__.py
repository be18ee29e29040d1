"""Exact replay: derivatives of where a recorded training ended with respect to every example's weight."""

from influence_engine.replay.reverse import Adjoint
from influence_engine.replay.rows import replay

__all__ = ["Adjoint", "replay"]

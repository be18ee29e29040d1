"""The refined tier: exact inner products and an iterative solve with the exact Gauss-Newton matrix."""

from influence_engine.refinement.refining import Refined, Refiner

__all__ = ["Refined", "Refiner"]

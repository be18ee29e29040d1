"""The refined tier: influence at the final weights by an iterative solve with the exact Gauss-Newton matrix.

* ``refining``: ``Refiner``, preconditioned conjugate gradients.
* ``products``: products with the Gauss-Newton matrix of all training examples, without forming it.
* ``preconditioner``: the index's damped inverse as the preconditioner of the solve.
"""

from influence_engine.refinement.refining import Refined, Refiner

__all__ = ["Refined", "Refiner"]

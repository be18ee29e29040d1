"""The generalised Gauss-Newton matrix (GGN) under the optimiser's preconditioner, its eigenbasis, and damping.

* ``output``: the loss's curvature at the model's outputs, exact or by sampled labels: the ``H`` of ``G = J^T H J``
* ``gradient_passes``: passes over examples that give loss gradients and rows of the GGN, batch by batch
* ``preconditioner``: the optimiser's ``D``, from recorded second moments or from squared gradients
* ``eigenbasis``: the leading eigenvectors of the GGN, from a sample of its rows
* ``damping``: ``lambda``, from the learning rates, from how far the weights moved, or a rule of thumb
* ``dual``: exact damped GGN influence for small cases, the reference that tests compare the index with
"""

from influence_engine.curvature.damping import (
    displacement_damping,
    heuristic_damping,
    recorded_damping,
    same_initialisation,
)
from influence_engine.curvature.dual import exact_influence, influence_from_products
from influence_engine.curvature.eigenbasis import Eigenbasis, decomposed, fit_eigenbasis
from influence_engine.curvature.output import (
    OutputCurvature,
    exact_output_curvature,
    fits_exact_curvature,
    sampled_output_gradients,
)
from influence_engine.curvature.preconditioner import (
    LayerPreconditioner,
    Preconditioner,
    SecondMomentEstimate,
    adam_preconditioner,
    identity_preconditioner,
)

__all__ = [
    "Eigenbasis",
    "LayerPreconditioner",
    "OutputCurvature",
    "Preconditioner",
    "SecondMomentEstimate",
    "adam_preconditioner",
    "decomposed",
    "displacement_damping",
    "exact_influence",
    "exact_output_curvature",
    "fit_eigenbasis",
    "fits_exact_curvature",
    "heuristic_damping",
    "identity_preconditioner",
    "influence_from_products",
    "recorded_damping",
    "same_initialisation",
    "sampled_output_gradients",
]

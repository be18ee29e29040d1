"""The GGN in the optimiser's metric, its eigenbasis, and damping."""

from influence_engine.curvature.damping import heuristic_damping, recorded_damping, same_start, travelled_damping
from influence_engine.curvature.dual import exact_influence, influence_from_products
from influence_engine.curvature.eigenbasis import Eigenbasis, decomposed, fit_eigenbasis
from influence_engine.curvature.metric import LayerMetric, Metric, SquaresFit, adam_metric, identity_metric
from influence_engine.curvature.output import (
    OutputCurvature,
    exact_output_curvature,
    fits_exact_curvature,
    sampled_output_gradients,
)

__all__ = [
    "Eigenbasis",
    "LayerMetric",
    "Metric",
    "OutputCurvature",
    "SquaresFit",
    "adam_metric",
    "decomposed",
    "exact_influence",
    "exact_output_curvature",
    "fit_eigenbasis",
    "fits_exact_curvature",
    "heuristic_damping",
    "identity_metric",
    "influence_from_products",
    "recorded_damping",
    "same_start",
    "sampled_output_gradients",
    "travelled_damping",
]

"""Per-example gradients by hooks, kept as factors."""

from influence_engine.gradients.factors import DenseGradient, FactoredGradient, IndexedGradient, LayerGradient
from influence_engine.gradients.layers import Layer, layer_for
from influence_engine.gradients.trace import Trace, tracing
from influence_engine.gradients.tracked import TrackedLayers, track

__all__ = [
    "DenseGradient",
    "FactoredGradient",
    "IndexedGradient",
    "Layer",
    "LayerGradient",
    "Trace",
    "TrackedLayers",
    "layer_for",
    "tracing",
    "track",
]

"""Per-example gradients of a model's trained layers, held as factors instead of materialised.

* ``tracked``: finds the layers that hold trainable parameters, and refuses what has no per-example gradients
* ``layers``: the supported kinds of layers, and each kind's gradient from its input and output gradient
* ``trace``: one forward pass with hooks, whose per-example gradients can be asked for
* ``factors``: the three forms of a per-example gradient and their common algebra
* ``coordinates``: few coordinates of each layer's gradient (truncated higher-order SVD)
* ``forward_mode``: derivatives along a direction of the parameters
"""

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

"""How much an index keeps: of held-out examples' gradients, and of the influence on these examples.

The part of a gradient outside the index's ``k`` coordinates is missing from every influence. For one damped step (Koh
and Liang 2017, eq. 2, with the damped GGN ``G + lambda I`` in preconditioned coordinates), the influence of example
``i`` on query ``q`` is the sum of

    g_q^T (Lambda + lambda)^-1 g_i   within the coordinates, with the GGN's eigenvalues ``Lambda``, and
    <g'_q, g'_i> / lambda            outside them, where the curvature is taken as zero,

with ``g'`` the parts of the gradients outside. The share of the squared influences that is kept is estimated without
holding two gradients side by side: with random signs ``s_i`` the expectation of ``influence(q, sum_i s_i g_i)^2`` is
``sum_i influence(q, g_i)^2`` (Hutchinson 1990), so a few signed sums of training gradients suffice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from influence_engine.curvature.gradient_passes import GradientPasses
from influence_engine.gradients.factors import LayerGradient
from influence_engine.index.building.context import BuildContext
from influence_engine.index.encoding.encoder import Encoder
from influence_engine.index.sizes import SIGNED_SAMPLE
from influence_engine.resources import free_memory
from influence_engine.tasks import Example

RETENTION = "measuring on held-out examples"

LITTLE = 0.6
"""Share of the influence below which an index warns: with less kept, the LDS was seen to lose a tenth (HISTORY.md)."""

_SIGNED_SUMS = 8
"""Most signed sums of training gradients."""

_SHARE_OF_FREE = 0.25
"""Share of the free memory that the signed sums may take."""


@dataclass(frozen=True)
class Retention:
    """What an index keeps.

    Attributes:
        gradients: Quantiles over held-out examples of the share of a gradient's squared norm that is kept.
        influence: Share of the squared influence on held-out examples that is kept, estimated; None without any.
    """

    gradients: dict[str, float]
    influence: float | None


def measured_retention(context: BuildContext, encoder: Encoder, damping: float) -> Retention:
    """Retention, measured by one pass over the held-out examples and one over some training examples.

    Args:
        context: The build.
        encoder: The index's.
        damping: ``lambda`` of one damped step at the final weights, also where the index is of another approximation.
    """
    return context.within_memory(RETENTION, lambda: _measured(context, encoder, damping), total=1)


def _measured(context: BuildContext, encoder: Encoder, damping: float) -> Retention:
    passes, held_out = context.passes, context.held_out
    if not held_out:
        return Retention({}, None)
    sums = _signed_sums(passes, encoder, context.examples, context.settings.seed)
    encoded_sums = encoder.rotate(encoder.coordinates.project_all_matrices(sums))
    shares, whole, missed = [], 0.0, 0.0
    for _, examples in passes.grouped(held_out, range(len(held_out))):
        gradients = encoder.coordinates.precondition(passes.loss_gradients(examples))
        encoded, share = encoder.encode_preconditioned(gradients)
        shares.append(share)
        products = torch.stack([_products(one, sums[name]) for name, one in gradients.items() if name in sums]).sum(0)
        outside = (products - encoded @ encoded_sums.T).double() / damping
        within = (encoded / (encoder.eigenvalues + damping) @ encoded_sums.T).double()
        whole += float((outside + within).pow(2).sum())
        missed += float(outside.pow(2).sum())
        context.progress(RETENTION, sum(map(len, shares)), len(held_out))
    every = torch.cat(shares).double().cpu()
    quantiles = {f"p{int(q * 100):02d}": float(every.quantile(q)) for q in (0.01, 0.1, 0.5, 0.9)}
    return Retention(quantiles, max(0.0, 1.0 - missed / whole) if whole else None)


def _signed_sums(passes: GradientPasses, encoder: Encoder, train: Sequence[Example], seed: int) -> dict[str, Tensor]:
    """``sum_i s_i g_i`` of training examples' preconditioned gradients, ``[R, d0, d1]`` by layer."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(train), generator=generator)[:SIGNED_SAMPLE].tolist()
    count = int(_SHARE_OF_FREE * free_memory(passes.device) / (8 * passes.tracked.parameters))
    count = max(1, min(_SIGNED_SUMS, count))
    signs = torch.randint(0, 2, (count, len(train)), generator=generator) * 2.0 - 1.0
    sums: dict[str, Tensor] = {}
    for positions, examples in passes.grouped(train, chosen):
        for name, gradient in encoder.coordinates.precondition(passes.loss_gradients(examples)).items():
            signed = torch.stack([gradient.times(one[positions].to(passes.device)).total() for one in signs])
            sums[name] = sums[name].add_(signed) if name in sums else signed
    return sums


def _products(gradient: LayerGradient, sums: Tensor) -> Tensor:
    """Inner products of a layer's gradients with each of the sums ``[R, d0, d1]``, ``[B, R]``."""
    return torch.stack([gradient.inner(one) for one in sums], 1)

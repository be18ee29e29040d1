"""How much the index keeps of what it was built for: of held-out examples' gradients, and of the influence on them.

What an index leaves out of the gradients would have its part in every influence. Of one damped Gauss-Newton step, with
``g'`` what lies beside the index's coordinates, where there is little curvature, it is ``<g'_q, g'_i> / lambda``, where
what lies within them has ``g_q^T (Lambda + lambda)^-1 g_i``, all in the optimiser's metric. With random signs ``s_i``
the mean of ``influence(q, sum_i s_i g_i)^2`` is ``sum_i influence(q, g_i)^2`` (Hutchinson 1990), so a few signed sums
of the training gradients say what share of all these squares goes missing, and no two gradients are held side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from influence_engine.curvature.gradient_passes import GradientPasses
from influence_engine.gradients.factors import LayerGradient
from influence_engine.index.encoding.encoder import Encoder
from influence_engine.index.sizes import SIGNED_SAMPLE
from influence_engine.progress import Progress
from influence_engine.resources import free_memory
from influence_engine.tasks import Example

RETAINED = "measuring on held-out examples"

LITTLE = 0.6
"""Of the influence: an index that keeps less says so, since with less LDS was seen to lose a tenth (RESULTS.md)."""

_SIGNED_SUMS = 8
_SHARE_OF_FREE = 0.25


@dataclass(frozen=True)
class Retention:
    """What an index keeps.

    Attributes:
        gradients: Quantiles over held-out examples of the share of a gradient's squared norm.
        influence: Share of the squared influence on held-out examples, estimated; None without any.
    """

    gradients: dict[str, float]
    influence: float | None


def measured_retention(
    passes: GradientPasses,
    encoder: Encoder,
    damping: float,
    train: Sequence[Example],
    held_out: Sequence[Example],
    seed: int,
    progress: Progress,
) -> Retention:
    """Measured with one pass over the held-out examples and one over some training examples.

    Args:
        passes: Over the model.
        encoder: Of the index.
        damping: ``lambda``: the index's own, or what one step would have where the recorded ones are followed.
        train: The training examples.
        held_out: Others.
        seed: Of the training examples that are taken, and of their signs.
        progress: Told of every batch.
    """
    if not held_out:
        return Retention({}, None)
    sums = _signed_sums(passes, encoder, train, seed)
    seen = encoder.rotate(encoder.coordinates.seen_together(sums))
    shares, whole, missed = [], 0.0, 0.0
    for _, examples in passes.grouped(held_out, range(len(held_out))):
        scaled = encoder.coordinates.scale(passes.loss_gradients(examples))
        encoded, share = encoder.encode_and_weigh_scaled(scaled)
        shares.append(share)
        products = torch.stack([_products(one, sums[name]) for name, one in scaled.items() if name in sums]).sum(0)
        beside = (products - encoded @ seen.T).double() / damping
        whole += float((beside + (encoded / (encoder.eigenvalues + damping) @ seen.T).double()).pow(2).sum())
        missed += float(beside.pow(2).sum())
        progress(RETAINED, sum(map(len, shares)), len(held_out))
    every = torch.cat(shares).double().cpu()
    quantiles = {f"p{int(q * 100):02d}": float(every.quantile(q)) for q in (0.01, 0.1, 0.5, 0.9)}
    return Retention(quantiles, max(0.0, 1.0 - missed / whole) if whole else None)


def _signed_sums(passes: GradientPasses, encoder: Encoder, train: Sequence[Example], seed: int) -> dict[str, Tensor]:
    """``sum_i s_i g_i`` over training examples in the metric, ``[R, d0, d1]`` by layer."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(train), generator=generator)[:SIGNED_SAMPLE].tolist()
    count = int(_SHARE_OF_FREE * free_memory(passes.device) / (8 * passes.tracked.parameters))
    count = max(1, min(_SIGNED_SUMS, count))
    signs = torch.randint(0, 2, (count, len(train)), generator=generator) * 2.0 - 1.0
    sums: dict[str, Tensor] = {}
    for positions, examples in passes.grouped(train, chosen):
        for name, gradient in encoder.coordinates.scale(passes.loss_gradients(examples)).items():
            signed = torch.stack([gradient.times(one[positions].to(passes.device)).total() for one in signs])
            sums[name] = sums[name].add_(signed) if name in sums else signed
    return sums


def _products(gradient: LayerGradient, sums: Tensor) -> Tensor:
    """Inner products of a layer's gradients with each of the sums ``[R, d0, d1]``, ``[B, R]``."""
    return torch.stack([gradient.inner(one) for one in sums], 1)

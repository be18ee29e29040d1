"""Settings of the training-gradient index: the section ``index`` of a configuration file."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from influence_engine.index.contents import StoreExamples

ApproximationName = Literal["unrolled", "segments", "final"]


class IndexSettings(BaseModel):
    """How the index is built. The defaults are good ones.

    Attributes:
        dimensions: Most values stored for an example; by default they fit in 4 kB together with its text.
        coordinates: Coordinates of all layers together, before the eigenbasis; more keep more of the influence and cost
            ``2 coordinates dimensions`` bytes once.
        approximation: ``unrolled`` differentiates through the recorded steps; ``segments`` through a few long segments
            instead (SOURCE), which lie on the linear path from the base model's weights where nothing was recorded;
            ``final`` is one damped Gauss-Newton step at the final weights. ``auto`` is the first of these that can be
            had, and ``final`` where a damping is given.
        segments: Number of segments of the trajectory; each costs about as much as indexing at the final weights.
        damping: ``lambda`` of ``final``, in preconditioned coordinates; by default ``1 / sum of learning rates``, which
            without a record is estimated from how far the weights are from the base model's. With ``segments``, the
            training that is divided has the length ``1 / lambda``.
        metric: The optimiser's preconditioner: ``adam`` (from the recorded second moments, without a record from
            estimated ones), ``identity`` (plain gradient descent), or ``auto``: Adam's, unless another optimiser is on
            record.
        dtype: Type of the stored vectors; with ``float16``, the encoder's basis is in bfloat16.
        store_examples: How the index stores what the examples say and where they are from: ``inline``, ``encrypted``
            under a key that is not in the index, or ``none``: ids, labels and vectors only.
        unsupported_layers: Whether to refuse or leave out trainable parameters in layers without per-example gradients.
        batch_tokens: Padded positions a batch; by default as many as the device is fast with and has the memory for.
        hessian_directions: Leading directions of the parameters along which the Hessians of the recorded steps are
            exact instead of Gauss-Newton; each costs once as much as replaying one direction.
        sample: Number of examples that the bases are fitted on.
        curvature_draws: Labels drawn for each example where the outputs are too many for their exact curvature.
        seed: Of the sample and of drawn labels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dimensions: int = Field(default=1920, ge=1, le=16384)
    coordinates: int = Field(default=16384, ge=1, le=262144)
    approximation: Literal["auto", ApproximationName] = "auto"
    segments: int = Field(default=3, ge=1, le=64)
    damping: float | None = Field(default=None, gt=0)
    metric: Literal["auto", "adam", "identity"] = "auto"
    dtype: Literal["float16", "float32"] = "float16"
    store_examples: StoreExamples = "inline"
    unsupported_layers: Literal["refuse", "leave_out"] = "refuse"
    batch_tokens: int | None = Field(default=None, ge=1)
    hessian_directions: int = Field(default=4, ge=0, le=256)
    sample: int = Field(default=2048, ge=2)
    curvature_draws: int = Field(default=2, ge=1)
    seed: int = Field(default=0, ge=0)

"""Settings of the training-gradient index."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from influence_engine.index.contents import StoreExamples

ApproximationName = Literal["unrolled", "segments", "final"]


class IndexSettings(BaseModel):
    """How the index is built. The defaults are good ones.

    Attributes:
        dimensions: Largest number of values stored for an example; by default 4 kB hold them, and its text.
        coordinates: Coordinates of all layers together, before the eigenbasis; more keep more of the influence and cost
            ``2 coordinates dimensions`` bytes once.
        approximation: ``unrolled`` follows the recorded steps; ``segments`` follows a few long ones instead, on the
            straight way from the base model's weights where nothing was recorded; ``final`` is one damped Gauss-Newton
            step at the final weights. ``auto`` is the first of these that can be had, and ``final`` with a damping.
        segments: Into how many the way is divided; each costs about what indexing at the final weights costs.
        damping: ``lambda`` of ``final``, in the optimiser's metric; by default ``1 / sum of learning rates``, without a
            record estimated from how far the weights are from the base model's. With ``segments``, what is divided is
            a training of the length ``1 / lambda``.
        metric: ``adam`` (the recorded second moments, without a record estimated ones), ``identity`` (plain gradient
            descent), or ``auto``: Adam's, unless another optimiser is on record.
        dtype: Storage of the vectors; ``float16`` has its basis in bfloat16.
        store_examples: What is kept of the examples themselves, where they are from included: ``inline``, ``encrypted``
            under a key that is not in the index, or ``none``: ids, labels and vectors only, the rest stays where it is.
        unsupported_layers: What to do when trainable parameters lie in layers without per-example gradients.
        batch_tokens: Padded positions a batch; by default as many as the device is fast with and has the memory for.
        hessian_directions: Leading directions of the weights along which the Hessians of the recorded steps are exact
            instead of Gauss-Newton; each costs what replaying one direction costs, once.
        sample: Examples that the bases are fitted on.
        curvature_draws: Labels drawn an example where the outputs are too many for their exact curvature.
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

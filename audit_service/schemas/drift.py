"""Request and response of ``/audit/drift``."""

from __future__ import annotations

from pydantic import BaseModel, Field

from audit_service.schemas.common import ModelRequest


class DriftRequest(ModelRequest):
    """Asks what has moved."""


class DriftReference(BaseModel):
    """The baseline that is compared with."""

    digest: str
    created: str = Field(description="ISO 8601.")
    predictions: int = Field(description="Held-out examples that it predicted.")
    explanations: int = Field(description="How many of these it explained.")


class OutsideIndexShare(BaseModel):
    """Explained predictions that the index says too little about."""

    share: float | None = Field(description="Of the explained ones; null where there is none.")
    reference: float
    threshold: float
    moved: bool


class DriftBin(BaseModel):
    """One bin of a signal."""

    bin: str
    share: float
    reference: float


class DriftSignal(BaseModel):
    """One signal beside its reference."""

    signal: str
    by: str | None = Field(description="For influence, what groups the training examples; null for other signals.")
    volume: int = Field(description="Events since the start of this replica.")
    psi: float | None = Field(description="Population stability index; null without events.")
    js: float | None = Field(description="Jensen-Shannon divergence; null without events.")
    threshold: float = Field(description="Of ``psi``, for this volume.")
    minimum: int = Field(description="Events below which nothing counts as moved.")
    moved: bool
    bins: list[DriftBin]


class Accuracy(BaseModel):
    """Of predictions whose true label has arrived."""

    examples: int
    accuracy: float


class CalibrationBin(Accuracy):
    """The same, of those whose confidence is in one bin."""

    confidence_up_to: str


class Outcomes(BaseModel):
    """What true labels say."""

    by_label: dict[str, Accuracy]
    calibration: list[CalibrationBin]


class DriftResponse(BaseModel):
    """What has moved since this replica's start."""

    model: str
    reference: DriftReference | None
    reason: str | None = Field(description="Why there is no reference; null where there is one.")
    predictions: int
    explanations: int
    outside_index: OutsideIndexShare | None
    signals: list[DriftSignal]
    outcomes: Outcomes

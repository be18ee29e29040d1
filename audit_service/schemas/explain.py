"""Request and response of ``/audit/explain``; ``/audit/explain_batch`` takes and gives a list of them."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from audit_service.schemas.common import (
    MAX_GROUPINGS,
    MAX_TOP_K,
    IndexIdentity,
    ModelIdentity,
    ModelRequest,
    Name,
    Part,
    Polarity,
    Target,
    Tier,
    exactly_one,
)

PartName = Literal["index", "replayed", "intervals", "drift_baseline"]
"""A part of an index that is made while it answers: the ``index`` along the training trajectory in place of a
provisional one, the ``replayed`` tier, 90% ``intervals`` from a check against retraining, the ``drift_baseline``."""


class ExplainRequest(ModelRequest):
    """A question: which training examples made this prediction?"""

    model_config = ConfigDict(json_schema_extra=exactly_one("prediction_id", "input"))

    prediction_id: str | None = Field(None, strict=True, max_length=128, description="A prediction on record.")
    input: dict[str, Any] | None = Field(None, description="The fields of one example, such as {'text': ...}.")
    target: Target | None = None
    top_k: int = Field(10, ge=1, le=MAX_TOP_K, strict=True, description="How many examples, strongest first.")
    polarity: Polarity = Field(
        "both", description="The strongest of both signs, ``top_k`` of each, or one sign's only."
    )
    tier: Tier = "best"
    include: list[Part] = Field(
        ["examples", "groups", "modules"],
        max_length=16,
        description="Parts of the answer. ``parts`` splits each example's influence over parts of it, and the change "
        "by fine-tuning over parts of the input, where the task names some.",
    )
    group_by: list[Name] = Field(
        ["label", "source"],
        max_length=MAX_GROUPINGS,
        description="Columns that influence is summed by: label, source, licence, consent, or one of the metadata.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.prediction_id is None) == (self.input is None):
            raise PydanticCustomError("one_source", "send exactly one of prediction_id and input")
        return self


class ExamplePart(BaseModel):
    """A part of a training example, such as a mention in its text or a region of its image."""

    field: str = Field(description="The field of the example that it is a part of.")
    start: int | None = Field(
        description="First character (of an image: row-major number of the region); null: the rest."
    )
    end: int | None = Field(description="One past the last; null: the rest.")
    label: str | None = Field(description="What training teaches of it, such as a mention's type.")
    influence: float = Field(description="Its share of what the example did to the target's measurement.")


class InfluentialExample(BaseModel):
    """One training example and what it did to this prediction."""

    example_handle: str
    rank: int
    influence: float = Field(description="What this example did to the target's measurement (log-odds of a label).")
    error_90: float | None = Field(
        None, description="Half of the 90% interval around it; null where the index was not checked against retraining."
    )
    probability_change: float | None = Field(None, description="The same change, of the target's probability.")
    tier: str
    polarity: Literal["proponent", "opponent"]
    label: str | None = Field(description="Its label, or what stands for it in a group.")
    source: str | None
    text: str | None = Field(None, description="What a person sees of it.")
    parts: list[ExamplePart] | None = Field(
        None, description="Its influence by part, where ``include`` names ``parts`` and the index keeps the example."
    )
    parts_residual: float | None = Field(
        None, description="Its influence less the sum of its parts, which are estimates unless the index is ``final``."
    )


class GroupShare(BaseModel):
    """A group's share of the influence, such as all examples of one source or label."""

    by: str = Field(description="Column that examples are grouped by.")
    group: str = Field(description="Its value; empty for examples without one, ``__other__`` for the rarest.")
    examples: int = Field(description="Training examples in the group.")
    share: float = Field(description="Of the sum of all absolute influences.")
    supporting: float = Field(description="What of that share supports the target.")
    opposing: float = Field(description="What of it speaks against the target.")
    influence: float = Field(description="Signed sum of the group's influences.")
    error_90: float | None = Field(None, description="Half of the 90% interval around that sum.")


class ModuleChange(BaseModel):
    """A module's first-order part in the change from the base model's measurement to the fine-tuned one's."""

    module: str
    change: float


class ChangedPart(BaseModel):
    """A part of the input, and what fine-tuning changed about the answer there."""

    field: str = Field(description="The field that it is a part of.")
    start: int | None = Field(description="First character, or row-major number of the region; null: the rest.")
    end: int | None = Field(description="One past the last; null: the rest.")
    label: str | None
    change: float


class Differences(BaseModel):
    """The base model beside the fine-tuned one."""

    target: str | dict[str, Any] | None = Field(description="As the task names it; null where it has no names.")
    measurement: float = Field(description="Of the target in the fine-tuned model: log-odds of a label.")
    base_measurement: float | None = Field(description="The same in the base model.")
    base_prediction: dict[str, Any] | None
    base_head: Literal["own", "random"] | None = Field(
        None,
        description="``random``: the base model has no head of its own, so what it predicts and measures is chance; "
        "null where that is not known.",
    )
    modules: list[ModuleChange] | None = None
    parts: list[ChangedPart] | None = Field(
        None,
        description="The same first-order change over parts of the input, such as regions of a picture, where "
        "``include`` names ``parts`` and the task has such; they sum to the sum over modules.",
    )
    modules_residual: float | None = Field(None, description="What the first-order split leaves over.")


class PartsQuality(BaseModel):
    """How the influences of the returned examples were split over their parts."""

    exact: bool = Field(
        description="Whether the parts are terms of the influences themselves (an index at the final weights), not "
        "estimates of such terms."
    )
    factor: float = Field(description="What all estimated parts of the answer were multiplied with; 1 for exact ones.")
    agreement: float = Field(description="Cosine of the examples' influences with the sums of their parts.")


class Quality(BaseModel):
    """How far the answer can be trusted."""

    share_returned: float = Field(description="Sum of |influence| returned over the sum over all examples.")
    share_in_basis: float | None = Field(
        None, description="Share of the squared estimates that replayed directions span; null for other tiers."
    )
    retained: float = Field(description="Share of the prediction's gradient that the index keeps.")
    outside_index: bool | None = Field(description="Whether that is less than for all but 1% of held-out examples.")
    error_90: float | None = Field(
        None, description="Half of the 90% interval around the summed influence of the returned examples."
    )
    agreement: float | None = Field(
        None, description="Cosine of predicted and retrained changes when the index was checked; null if it was not."
    )
    warnings: list[str] = Field([], description="What makes the answer doubtful, in words.")
    parts: PartsQuality | None = Field(None, description="Where influences were split over parts: how well.")
    parity: bool | None = Field(
        description="Whether torch agrees with the prediction on record; null where there is none."
    )


class PendingPart(BaseModel):
    """A part of the index that is being made now, and will make later answers better."""

    part: PartName
    state: Literal["running", "waiting"] = "waiting"
    stage: str | None = Field(None, description="What is being done for it; null while it waits.")
    done: int = Field(0, description="Finished units of that stage.")
    total: int = Field(0, description="Units of that stage.")
    seconds_left: float | None = Field(
        None, description="Of that stage, by what was done so far; null until that says something."
    )


class ExplainResponse(BaseModel):
    """One explanation."""

    explanation_id: str
    prediction_id: str | None
    model: ModelIdentity
    index: IndexIdentity
    prediction: dict[str, Any] | None
    examples: list[InfluentialExample] | None = None
    groups: list[GroupShare] | None = None
    differences: Differences
    quality: Quality
    coming: list[PendingPart] = Field([], description="What is being made now; the engine takes it up by itself.")
    timings_ms: dict[str, float]

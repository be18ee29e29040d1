"""Requests and responses of ``/audit/jobs/submit``, ``status``, ``get`` and ``cancel``."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from audit_service.schemas.common import (
    MAX_TOP_K,
    ErrorDetail,
    IndexIdentity,
    ModelIdentity,
    ModelRequest,
    Name,
    Polarity,
    Request,
    Target,
)


class Selection(Request):
    """Training examples: the strongest of the explanation, a group, or some that are named."""

    top_k: int | None = Field(None, ge=1, le=MAX_TOP_K, strict=True, description="So many of the strongest ones.")
    polarity: Polarity = Field("both", description="With ``top_k``: of which.")
    group: dict[Name, Name] | None = Field(
        None, min_length=1, max_length=1, description="A column and its value, such as {'label': 'negative'}."
    )
    examples: list[Name] | None = Field(None, min_length=1, max_length=10_000, description="Their handles.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if sum(part is not None for part in (self.top_k, self.group, self.examples)) != 1:
            raise PydanticCustomError("one_selection", "name exactly one of top_k, group and examples")
        return self


class Relabel(Selection):
    """Other labels for training examples."""

    label: JsonValue = Field(description="The label that they get; those that have it keep it.")


class Edit(Request):
    """Another text for a training example."""

    example: Name = Field(description="Its handle.")
    text: str = Field(
        strict=True, min_length=1, description="The text that it gets; as long as an input may be, at most."
    )


class JobRequest(ModelRequest):
    """A question that is answered by training again: what would this prediction be, had the training data differed?"""

    prediction_id: str | None = Field(None, strict=True, max_length=128, description="A prediction on record.")
    input: dict[str, Any] | None = Field(None, description="The fields of one example, such as {'text': ...}.")
    target: Target | None = None
    without: Selection | None = Field(None, description="Train without these.")
    relabel: Relabel | None = Field(None, description="Train with another label for these.")
    edit: Edit | None = Field(None, description="Train with another text for this one.")
    replay: bool = Field(
        False, strict=True, description="Also predict by differentiating along the recorded steps: some trainings more."
    )

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if (self.prediction_id is None) == (self.input is None):
            raise PydanticCustomError("one_source", "send exactly one of prediction_id and input")
        if sum(part is not None for part in (self.without, self.relabel, self.edit)) != 1:
            raise PydanticCustomError("one_change", "send exactly one of without, relabel and edit")
        return self


class JobReference(Request):
    """Names a job."""

    job_id: str = Field(strict=True, max_length=64)


JobState = Literal["queued", "running", "done", "failed", "cancelled"]


class JobProgress(BaseModel):
    """How far a running job is."""

    stage: str
    done: int
    total: int
    seconds_left: float | None = Field(description="From what was done so far; null until that says something.")


class JobStatus(BaseModel):
    """Where a job stands."""

    job_id: str
    state: JobState
    waiting_before: int | None = Field(None, description="Queued: jobs that come first.")
    created: float = Field(description="Unix time in seconds, as the two below.")
    started: float | None = None
    ended: float | None = None
    attempts: int = Field(description="How often a worker began or went on with it.")
    cancelling: bool = Field(False, description="It stops at its next step.")
    progress: JobProgress | None = None
    error: ErrorDetail | None = None


class ChangedExample(BaseModel):
    """A training example that was changed."""

    example_handle: str
    label: str | None
    source: str | None


class MeasuredChange(BaseModel):
    """What training again did to one prediction; measurements are those of its target: log-odds of a label."""

    target: str | dict[str, Any] | None
    before: float = Field(description="After the recorded steps, executed where the job ran.")
    after: float = Field(description="After training with the change.")
    measured: float = Field(description="after - before.")
    predicted: dict[str, float] = Field(description="By tier, what was predicted for ``measured``.")
    ratio: dict[str, float | None] = Field(description="By tier, measured / predicted; 1 is right.")
    probability_before: float | None = Field(description="The target's; null where a measurement stands for none.")
    probability_after: float | None
    probability_predicted: dict[str, float | None]
    label_before: str | None
    label_after: str | None
    flipped: bool | None


class MeasuredAnswer(BaseModel):
    """The result of a job."""

    tier: Literal["measured"] = "measured"
    kind: Literal["remove", "relabel", "edit"]
    change: MeasuredChange
    changed_examples: int
    training_examples: int
    examples: list[ChangedExample] = Field(description="Of those changed, a hundred at most.")
    steps: int
    control_gap: float = Field(description="What executing the recorded steps here differs by: below it is noise.")
    seconds: float
    control_seconds: float
    predicted_error_90: dict[str, float | None] = Field(
        {}, description="By tier, half of the 90% interval around the predicted change; null where nothing says it."
    )
    predicted_seconds: dict[str, float] = Field(description="By tier, what the prediction took.")
    memory_bytes: int = Field(description="The most that the worker held.")
    memory_predicted_bytes: int
    model: ModelIdentity
    index: IndexIdentity
    twin: dict[str, Any] | None = Field(
        None, description="Set where not the served model was trained again but a surrogate: how far the two agree."
    )


class JobAnswer(BaseModel):
    """A job with its result."""

    job_id: str
    state: JobState
    result: MeasuredAnswer | None = None

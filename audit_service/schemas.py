"""Requests and responses, one obvious place for each field; the same names go through YAML, Python and HTTP."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

MAX_TOP_K = 100
MAX_BATCH = 100
MAX_FEEDBACK = 1_000
MAX_GROUPINGS = 8

Polarity = Literal["both", "each", "proponents", "opponents"]
Tier = Literal["best", "estimated", "refined", "replayed", "measured"]
Part = Literal["examples", "groups", "modules"]


class Request(BaseModel):
    """Base of what comes from outside: unknown fields are refused, and error messages never repeat the input."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class TextInput(Request):
    """A text to classify."""

    text: str = Field(strict=True, description="The text; at least one word.")

    @field_validator("text")
    @classmethod
    def _has_a_word(cls, text: str) -> str:
        if not text.strip():
            raise PydanticCustomError("empty_text", "is empty; send at least one word")
        return text


class Prediction(BaseModel):
    """What a classifier answers; ``@audited`` fills in ``prediction_id``."""

    prediction_id: str | None = None
    label: str
    confidence: float = Field(description="Probability of the label, 0 to 1.")
    scores: dict[str, float] = Field(description="Probability of every label.")


class Target(Request):
    """What is to be explained, instead of what was predicted."""

    label: str = Field(strict=True, description="Name of the label whose log-odds are explained.")


class ExplainRequest(Request):
    """A question: which training examples made this prediction?"""

    prediction_id: str | None = Field(None, strict=True, max_length=128, description="A prediction on record.")
    input: dict[str, Any] | None = Field(None, description="The fields of one example, such as {'text': ...}.")
    target: Target | None = None
    top_k: int = Field(10, ge=1, le=MAX_TOP_K, strict=True, description="How many examples, strongest first.")
    polarity: Polarity = Field(
        "both", description="The strongest of both signs, ``top_k`` of each, or one sign's only."
    )
    tier: Tier = "best"
    include: list[Part] = Field(["examples", "groups", "modules"], description="Parts of the answer.")
    group_by: list[str] = Field(
        ["label", "source"],
        max_length=MAX_GROUPINGS,
        description="Columns that influence is summed by: label, source, licence, consent, or one of the metadata.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.prediction_id is None) == (self.input is None):
            raise PydanticCustomError("one_source", "send exactly one of prediction_id and input")
        return self


class ModelIdentity(BaseModel):
    """Which model answered."""

    tag: str
    digest: str


class IndexIdentity(BaseModel):
    """Which index answered."""

    tag: str
    digest: str
    method: str = Field(
        description="``unrolled``: along the recorded steps; ``segments``: along a few long ones from the base model's "
        "weights; ``final``: one step at the final weights."
    )
    rows: int = Field(description="Training examples in the index.")


class InfluentialExample(BaseModel):
    """One training example and what it did to this prediction."""

    example_handle: str
    rank: int
    influence: float = Field(description="Change of the measurement (log-odds of the target) due to this example.")
    error_90: float | None = Field(
        None, description="Half of the 90% interval around it; null where the index was not checked against retraining."
    )
    probability_change: float | None = Field(None, description="The same change, of the target's probability.")
    tier: str
    polarity: Literal["proponent", "opponent"]
    label: str | None
    source: str | None
    text: str | None = None


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


class Differences(BaseModel):
    """The base model beside the fine-tuned one."""

    target: str | None
    measurement: float = Field(description="Log-odds of the target in the fine-tuned model.")
    base_measurement: float | None = Field(description="The same in the base model.")
    base_prediction: dict[str, Any] | None
    modules: list[ModuleChange] | None = None
    modules_residual: float | None = Field(None, description="What the first-order split leaves over.")


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
    parity: bool | None = Field(
        description="Whether torch agrees with the prediction on record; null where there is none."
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
    timings_ms: dict[str, float]


class ErrorDetail(BaseModel):
    """What was wrong, and what would be right."""

    code: str
    message: str
    field: str | None = None


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetail


class EngineItem(BaseModel):
    """One explanation asked of the engine; the edge has resolved ids and checked shapes."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    input: dict[str, Any]
    target: Target | None = None
    top_k: int = Field(10, ge=1, le=MAX_TOP_K)
    polarity: Polarity = "both"
    tier: Tier = "best"
    include: list[Part] = ["examples", "groups", "modules"]
    group_by: list[str] = Field(["label", "source"], max_length=MAX_GROUPINGS)
    recorded: dict[str, Any] | None = Field(None, description="The prediction on record, for the parity check.")


class EngineRequest(BaseModel):
    """What an edge sends to the engine. ``config`` names the model: one engine may serve several services."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    config: str
    items: list[EngineItem] = Field(min_length=1, max_length=MAX_BATCH)
    deadline_s: float = Field(gt=0, le=600, description="Seconds after which the edge no longer waits.")


class StatusRequest(Request):
    """Asks what is loaded."""

    config: str | None = None


class FeedbackItem(Request):
    """The true label of one prediction."""

    prediction_id: str = Field(strict=True, min_length=1, max_length=128)
    label: str = Field(strict=True, min_length=1, max_length=1024, description="What was right.")
    groups: dict[str, str] = Field(
        default_factory=dict, max_length=16, description="Groups it belongs to, such as {'region': 'north'}."
    )


class FeedbackRequest(Request):
    """True labels that have arrived; days later, in bulk."""

    items: list[dict[str, Any]] = Field(
        min_length=1, max_length=MAX_FEEDBACK, description="Each with prediction_id, label and, if wanted, groups."
    )


class DriftRequest(Request):
    """Asks what has moved; there is nothing to choose."""


class IndexRequest(Request):
    """Asks what is loaded; there is nothing to choose."""


class Selection(Request):
    """Training examples: the strongest of the explanation, a group, or some that are named."""

    top_k: int | None = Field(None, ge=1, le=MAX_TOP_K, strict=True, description="So many of the strongest ones.")
    polarity: Polarity = Field("both", description="With ``top_k``: of which.")
    group: dict[str, str] | None = Field(
        None, min_length=1, max_length=1, description="A column and its value, such as {'label': 'negative'}."
    )
    examples: list[str] | None = Field(None, min_length=1, max_length=10_000, description="Their handles.")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if sum(part is not None for part in (self.top_k, self.group, self.examples)) != 1:
            raise PydanticCustomError("one_selection", "name exactly one of top_k, group and examples")
        return self


class Relabel(Selection):
    """Other labels for training examples."""

    label: str = Field(strict=True, description="The label that they get; those that have it keep it.")


class Edit(Request):
    """Another text for a training example."""

    example: str = Field(strict=True, description="Its handle.")
    text: str = Field(strict=True, description="The text that it gets.")


class JobRequest(Request):
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
    """What training again did to one prediction; measurements are log-odds of the target."""

    target: str | None
    before: float = Field(description="After the recorded steps, executed where the job ran.")
    after: float = Field(description="After training with the change.")
    measured: float = Field(description="after - before.")
    predicted: dict[str, float] = Field(description="By tier, what was predicted for ``measured``.")
    ratio: dict[str, float | None] = Field(description="By tier, measured / predicted; 1 is right.")
    probability_before: float
    probability_after: float
    probability_predicted: dict[str, float]
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
        None, description="Set where not the served model was trained again but its twin: how far the two agree."
    )


class JobAnswer(BaseModel):
    """A job with its result."""

    job_id: str
    state: JobState
    result: MeasuredAnswer | None = None

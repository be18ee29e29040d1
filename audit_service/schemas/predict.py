"""Request and response of ``/predict``, where a service classifies texts."""

from __future__ import annotations

from pydantic import BaseModel, Field, field_validator
from pydantic_core import PydanticCustomError

from audit_service.schemas.common import Request


class TextInput(Request):
    """A text to classify."""

    text: str = Field(
        strict=True, description="The text; at least one word.", json_schema_extra={"minLength": 1, "pattern": r"\S"}
    )

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

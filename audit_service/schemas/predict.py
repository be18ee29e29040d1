"""Request and responses of ``/predict``, where a service classifies texts or finds entities in them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, field_validator
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


def _sent_in_json(value: Any) -> Any:
    # BentoML's own reading of a file knows no string; what is in base64 there is decoded with the file itself.
    return value.encode("utf-8", errors="replace") if isinstance(value, str) else value


Upload = Annotated[Path, BeforeValidator(_sent_in_json)]
"""A file that is uploaded (``multipart/form-data``) or sent in JSON, its bytes in base64 or as a data URL."""


class Prediction(BaseModel):
    """What a classifier answers; ``@audited`` fills in ``prediction_id``."""

    prediction_id: str | None = None
    label: str
    confidence: float = Field(description="Probability of the label, 0 to 1.")
    scores: dict[str, float] = Field(description="Probability of every label.")


class Entity(BaseModel):
    """A span of a text."""

    start: int = Field(description="Its first character.")
    end: int = Field(description="One past its last.")
    label: str = Field(description="Its type.")
    confidence: float = Field(description="Probability that each of its words belongs to it, 0 to 1.")
    text: str = Field(description="Its characters.")


class EntityPrediction(BaseModel):
    """The entities of a text, none or several; ``@audited`` fills in ``prediction_id``."""

    prediction_id: str | None = None
    entities: list[Entity]

"""Request and response of ``/predict``, where a service classifies texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from audit_service.schemas.common import Request


class TextInput(Request):
    """A text to classify."""

    text: str = Field(strict=True, description="The text; at least one word.")

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

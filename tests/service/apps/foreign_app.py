"""Two small services with a predictor of their own."""

from __future__ import annotations

import bentoml
from pydantic import BaseModel

from audit_service import AuditMixin, audited


class Answer(BaseModel):
    mood: str


def mood_of(text: str) -> str:
    return "negative" if "dull" in text else "positive"


@bentoml.service
class Foreign(AuditMixin, config="sentiment"):
    @bentoml.api
    @audited(label="mood")
    def ask(self, text: str) -> Answer:
        return Answer(mood=mood_of(text))


@bentoml.service(workers=2)
class ManyWorkers(AuditMixin, config="sentiment"):
    @bentoml.api
    @audited(label="mood")
    def ask(self, text: str) -> Answer:
        return Answer(mood=mood_of(text))

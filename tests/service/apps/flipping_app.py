"""A service whose answers differ from the explained model's: as if another model served than was indexed."""

from __future__ import annotations

import bentoml

from audit_service import AuditMixin, Prediction, TextInput, audited


@bentoml.service
class Flipping(AuditMixin, config="sentiment"):
    def __init__(self) -> None:
        self.predictor = self.audit.open_predictor()

    @bentoml.api
    @audited(label="label", scores="scores")
    async def predict(self, request: TextInput, /) -> Prediction:
        (right,) = self.predictor.predict([{"text": request.text}])
        wrong = next(label for label in right["scores"] if label != right["label"])
        return Prediction(label=wrong, confidence=0.9, scores={wrong: 0.9, right["label"]: 0.1})

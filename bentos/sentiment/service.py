"""Sentiment of a text, with the training examples that made every answer."""

import bentoml

from audit_service import AuditMixin, Prediction, TextInput, audited


@bentoml.service
class Sentiment(AuditMixin, config="sentiment"):
    """Predicts with ONNX Runtime; ``/audit/explain`` says why."""

    def __init__(self) -> None:
        self.predictor = self.audit.open_predictor()

    @bentoml.api
    @audited(label="label", confidence="confidence", scores="scores")
    async def predict(self, request: TextInput, /) -> Prediction:
        return Prediction(**self.predictor.predict([{"text": request.text}])[0])

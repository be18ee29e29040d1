"""Entities of a text, with the training examples, and the mentions in them, that taught every one."""

import bentoml

from audit_service import AuditMixin, EntityPrediction, TextInput, audited


@bentoml.service
class Entities(AuditMixin, config="entities"):
    """Predicts with ONNX Runtime; ``/audit/explain`` says why."""

    def __init__(self) -> None:
        self.predictor = self.audit.open_predictor()

    @bentoml.api
    @audited(label="entities.label", confidence="entities.confidence")
    async def predict(self, request: TextInput, /) -> EntityPrediction:
        return EntityPrediction(**self.predictor.predict([{"text": request.text}])[0])

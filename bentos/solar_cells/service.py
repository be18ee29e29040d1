"""Defects of a solar cell in a photograph, with the training photographs that made every answer."""

import bentoml

from audit_service import AuditMixin, Prediction, Upload, audited


@bentoml.service
class SolarCells(AuditMixin, config="solar_cells"):
    """Predicts with ONNX Runtime; ``/audit/explain`` says why, ``/audit/thumbnail`` shows what it names."""

    def __init__(self) -> None:
        self.predictor = self.audit.open_predictor()

    @bentoml.api
    @audited(label="label", confidence="confidence", scores="scores")
    async def predict(self, image: Upload) -> Prediction:
        return Prediction(**self.predictor.predict([{"image": image}])[0])

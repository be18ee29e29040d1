"""The exported model of a config, opened as it is served."""

from __future__ import annotations

from collections.abc import Callable

from audit_service.artifacts.bento_models import find
from audit_service.artifacts.processors import processor_in
from audit_service.config import AuditConfig
from audit_service.prediction.export_files import PROCESSOR
from audit_service.prediction.predictor import OnnxPredictor
from influence_engine.tasks import Array


def open_predictor(config: AuditConfig, observe: Callable[[Array], None] | None = None) -> OnnxPredictor:
    """The config's model in ONNX Runtime, as it is served.

    Args:
        config: The config.
        observe: Given the model's features of every batch.

    Raises:
        RecordError: it has not been exported yet.
        DigestMismatchError: a file has changed, or the task has.
    """
    folder = find(config, "onnx").folder
    processor = processor_in(config, folder / PROCESSOR) if (folder / PROCESSOR).is_dir() else None
    return OnnxPredictor(
        folder,
        config.task_object(processor),
        threads=config.serve.threads,
        max_chars=config.serve.max_text_chars,
        observe=observe,
    )

"""The exported model of a config, opened as it is served."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from audit_service.artifacts.bento_models import find
from audit_service.artifacts.processors import processor_in
from audit_service.config import AuditConfig
from audit_service.errors import ModelUnavailableError
from audit_service.prediction.export_files import PROCESSOR
from audit_service.prediction.predictor import OnnxPredictor
from influence_engine.errors import InfluenceError, reason_of
from influence_engine.tasks import Array, Example

RETRY_S = 10.0

logger = logging.getLogger(__name__)


class ReopenedPredictor:
    """A predictor that is opened as soon as it can be; until then every prediction is refused with the reason.

    A worker that ended instead would be started again for ever, and clients would get no answer at all.

    Args:
        open_it: Opens it.
        opened: Called once, with the predictor.
    """

    def __init__(self, open_it: Callable[[], OnnxPredictor], opened: Callable[[OnnxPredictor], None]) -> None:
        self._open, self._opened = open_it, opened
        self._lock = threading.Lock()
        self._predictor: OnnxPredictor | None = None
        self._reason, self._next = "", 0.0
        self._try()

    def predict(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """As ``OnnxPredictor.predict``.

        Raises:
            ModelUnavailableError: the model cannot be opened; it is tried again every ten seconds.
            InputError: an example cannot be used.
        """
        predictor = self._predictor or self._try()
        if predictor is None:
            raise ModelUnavailableError(f"there is no model to predict with: {self._reason}", retry_after=int(RETRY_S))
        return predictor.predict(examples)

    def _try(self) -> OnnxPredictor | None:
        with self._lock:
            if self._predictor is None and time.monotonic() >= self._next:
                try:
                    predictor = self._open()
                except Exception as error:  # whatever it is, it is the reason
                    self._next = time.monotonic() + RETRY_S
                    reason = reason_of(error)
                    if reason != self._reason:
                        unforeseen = not isinstance(error, InfluenceError)
                        logger.error("predictions are refused: %s", reason, exc_info=unforeseen)
                    self._reason = reason
                else:
                    self._opened(predictor)
                    self._predictor = predictor
            return self._predictor


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

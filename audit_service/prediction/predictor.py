"""Predicts with ONNX Runtime, from an exported model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from audit_service.prediction.export import run_with_features
from audit_service.prediction.export_files import MODEL, read_export
from audit_service.prediction.inputs import taken_input
from influence_engine.errors import DigestMismatchError, InputError, ModelError
from influence_engine.tasks import (
    Array,
    Example,
    ExportableTask,
    PredictingTask,
    ServingTask,
    Task,
    fields_of,
    matches_task_digest,
)


class OnnxPredictor:
    """A model exported by ``export_onnx``; safe to call from several threads.

    Args:
        folder: The export.
        task: The task it was exported for; it turns examples into inputs and outputs into predictions.
        threads: Threads of one call; ``None`` leaves it to ONNX Runtime.
        max_chars: Texts longer than this are refused.
        observe: Called with the features ``[B, width]`` of every prediction, where there are some; it must not raise.

    Raises:
        DigestMismatchError: a file has changed, or the export was made for another task.
        ModelError: the task cannot predict.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        task: Task,
        *,
        threads: int | None = None,
        max_chars: int | None = None,
        observe: Callable[[Array], None] | None = None,
    ) -> None:
        manifest = read_export(folder)
        if not matches_task_digest(task, manifest["task_digest"]):
            raise DigestMismatchError(
                f"{folder} was exported for a task with other labels, fields or another processor; export it again",
                field=str(folder),
            )
        if not isinstance(task, PredictingTask) or not isinstance(task, ExportableTask):
            raise ModelError(f"{type(task).__name__} needs the methods model_inputs and predictions to predict")
        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        self.model_digest: str = manifest["model_digest"]
        self.max_chars = max_chars
        self._observe = observe
        self._task: Any = task
        self._fields = fields_of(task)
        self._serving = task if isinstance(task, ServingTask) else None
        path = Path(folder) / MODEL
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def predict(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """What the task says of each example, such as ``{"label", "confidence", "scores"}``.

        Raises:
            InputError: an example cannot be used; the message says which and why.
        """
        if not examples:
            return []
        alone = len(examples) == 1
        examples = [self._taken(example, None if alone else number) for number, example in enumerate(examples)]
        if self._serving is not None:
            return self._serving.serving_predictions(self._run(self._serving.serving_inputs(examples)))
        batch = self._task.collate(examples)
        inputs = {name: tensor.numpy() for name, tensor in self._task.model_inputs(batch).items()}
        predictions: list[dict[str, Any]] = self._task.predictions(torch.from_numpy(self._run(inputs)), batch)
        return predictions

    def _run(self, inputs: Mapping[str, Array]) -> Array:
        outputs, features = run_with_features(self._session, inputs)
        if features is not None and self._observe is not None:
            self._observe(features)
        return outputs

    def _taken(self, example: Example, number: int | None) -> Example:
        try:
            return taken_input(self._task, self._fields, example, self.max_chars)
        except InputError as error:
            if number is None:
                raise
            raise InputError(f"item {number}: {error.message}", field=f"{number}.{error.field}") from None

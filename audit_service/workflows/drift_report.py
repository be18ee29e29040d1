"""Reports how a file of inputs, or the recorded predictions, differ from the drift baseline."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audit_service.artifacts.onnx_models import open_predictor
from audit_service.artifacts.state_places import state_folder, state_location
from audit_service.config.sections import seconds_of
from audit_service.drift.html import as_html
from audit_service.drift.report import drift_report
from audit_service.drift.signals import FeatureCatcher, Predicted, explain_all, predict_all, predict_with_torch
from audit_service.monitoring.drift_baseline import DriftBaseline
from audit_service.prediction.inputs import taken_input
from audit_service.store.outcomes import OutcomeStore
from audit_service.store.predictions import PredictionStore
from audit_service.workflows import drift_baseline
from audit_service.workflows.input_files import input_columns, input_table
from audit_service.workflows.task_inputs import shown_input
from audit_service.workspace import Workspace
from influence_engine.errors import DataError, RecordError
from influence_engine.files import write_text
from influence_engine.tasks import ExportableTask, PredictingTask, embedded


def since_s(text: str) -> float:
    """The Unix time that a span such as ``24h`` reaches back to."""
    return time.time() - seconds_of(text)


def report(workspace: Workspace, inputs: Path | None, since: float | None, most_explained: int) -> dict[str, Any]:
    """The drift report over a file of inputs, or over the predictions recorded since a Unix time.

    Raises:
        RecordError: there is no baseline.
        DataError: there are no inputs.
    """
    config = workspace.config
    baseline = drift_baseline.of_config(config)
    if baseline is None:
        again = f"bento-audit reference build {config.spelled}"
        raise RecordError(f"{config.name!r} has no baseline; make it with: {again}")
    outcomes: list[dict[str, Any]] = []
    if inputs is not None:
        examples = read_inputs(workspace, inputs)
    else:
        location = state_location(config)
        recorded = PredictionStore(location).since(since or 0.0)
        examples = [dict(one.input) for one in recorded if one.input is not None]
        outcomes = OutcomeStore(location).judged(since or 0.0)
    if not examples:
        where = str(inputs) if inputs is not None else f"the record in {state_folder(config)}"
        raise DataError(f"{where} holds no inputs to report on", field="inputs")
    return _compared(baseline, workspace, examples, outcomes, most_explained)


def read_inputs(workspace: Workspace, path: Path) -> list[dict[str, Any]]:
    """The inputs of a .jsonl, .csv or .parquet file; rows that lack a field or that the task refuses are left out.

    Raises:
        SettingsError: it is a file of another format.
        DataError: the file cannot be read, or has no column with a field of the inputs.
    """
    table = input_table(path, "inputs")
    columns = input_columns(workspace, table, "inputs")
    found = []
    for row in table.rows:
        given = {name: row.values.get(column) for name, column in columns.items()}
        if None in given.values():
            continue
        with contextlib.suppress(DataError):
            example = embedded(workspace.fields, given, path.absolute().parent)
            found.append(
                dict(taken_input(workspace.task, workspace.fields, example, workspace.config.serve.max_text_chars))
            )
    return found


def _compared(
    baseline: DriftBaseline,
    workspace: Workspace,
    examples: Sequence[dict[str, Any]],
    outcomes: Sequence[dict[str, Any]],
    most_explained: int,
) -> dict[str, Any]:
    progress = workspace.progress
    predicted = _predicted(workspace, examples)
    rows = sorted(random.Random(0).sample(range(len(examples)), min(most_explained, len(examples))))
    explained, _ = explain_all(
        workspace.attributor,
        [examples[row] for row in rows],
        tier=baseline.tier,  # type: ignore[arg-type]
        group_by=[one.by for one in baseline.influence],
        progress=progress,
    )
    texts = [shown_input(workspace.task, example) for example in examples]
    return drift_report(baseline, texts, predicted, explained, rows, outcomes)


def _predicted(workspace: Workspace, examples: Sequence[dict[str, Any]]) -> Predicted:
    """Predictions of the exported model; with torch for a task that cannot be exported."""
    if not (isinstance(workspace.task, ExportableTask) and isinstance(workspace.task, PredictingTask)):
        return predict_with_torch(workspace.attributor, examples, workspace.progress)
    catcher = FeatureCatcher()
    predictor = open_predictor(workspace.config, catcher)
    return predict_all(predictor, catcher, examples, workspace.progress, task=workspace.task)


def write(found: dict[str, Any], out: Path) -> list[Path]:
    """Writes the report as JSON and as HTML beside it; returns both."""
    out.parent.mkdir(parents=True, exist_ok=True)
    files = [out.with_suffix(".json"), out.with_suffix(".html")]
    write_text(files[0], json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(files[1], as_html(found))
    return files

"""Explains one input, or a file of inputs, without a server, by the code and in the form of ``/audit/explain``.

The explanations of a file are written to a folder beside the file that they become, batch by batch, with the sums over
all of them: a run that was interrupted goes on after the last batch that was written whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from audit_service.engine.explaining import explain, query_of
from audit_service.engine.loading import Loaded, load
from audit_service.errors import BadRequestError
from audit_service.schemas import EngineItem, Polarity, Tier
from audit_service.workflows.aggregate_influence import SharedInfluence, shared_examples, shared_groups
from audit_service.workflows.asked_rows import Asked, RowReader, read_rows
from audit_service.workflows.task_inputs import target_fields
from audit_service.workspace import Workspace
from influence_engine.attribution.groups import DEFAULT_COLUMNS
from influence_engine.digests import file_digest, json_digest
from influence_engine.errors import InfluenceError, InputError, RecordError, SettingsError
from influence_engine.files import remove_tree, sync_file, sync_folder
from influence_engine.names import listing
from influence_engine.progress import Progress
from influence_engine.resources import to_device
from influence_engine.tasks import (
    Target,
    predictions_of,
    predicts_labels,
    show,
    target_field,
)
from influence_engine.tensor_files import write_tensors

BATCH = 16
"""Rows that share a forward and backward pass, and that an interruption can cost."""

SHOWN = "text"
"""Key of what a person sees of a training example in answers, whatever its fields."""


@dataclass(frozen=True)
class Question:
    """The question about an input, or about every row of a file.

    Attributes:
        target: Target to explain, a label's name or what else the task understands, whatever the rows say.
        top_k: Number of training examples of each polarity.
        polarity: Polarities of the training examples to return.
        group_by: Columns of the training examples that influence is summed by.
        tier: How influences are obtained.
        parts: Whether to split the returned examples' influences over parts of them.
        only_wrong: Leave out rows whose label is what the model predicts; of the others, explain what it predicts.
    """

    target: Target | None = None
    top_k: int = 5
    polarity: Polarity = "both"
    group_by: list[str] = field(default_factory=lambda: list(DEFAULT_COLUMNS))
    tier: Tier = "best"
    parts: bool = False
    only_wrong: bool = False


def explain_input(workspace: Workspace, fields: Mapping[str, Any], question: Question) -> dict[str, Any]:
    """The explanation of an input as ``/audit/explain`` answers it, without ids; ``top_k`` examples of each polarity.

    Raises:
        InputError: the input or the target cannot be used.
        InfluenceError: model or index are missing, have changed or do not belong together.
    """
    loaded = _load(workspace, question.tier)
    asked = Asked(line=1, id=None, input=dict(fields), target=question.target)
    (answer,) = _answers(loaded, [asked], question)
    return answer


def explain_file(workspace: Workspace, path: Path, out: Path, question: Question) -> dict[str, Any]:
    """Explains every row of ``path`` and writes one explanation a line to ``out``, in the order of the rows.

    Args:
        workspace: Workspace of the model and its index.
        path: A .jsonl, .csv or .parquet file. A field of the input is in the column that is named as the field, or as
            the training data's column for it; so are ``id`` and the label, where there are any.
        out: The file to write. Until it is complete, the explanations lie in ``partial_folder(out)``.
        question: What to explain of each row.

    Returns:
        How many rows were ``explained`` and how many ``skipped``; ``shared_examples`` and ``shared_groups``.

    Raises:
        SettingsError: ``out`` exists already, or ``path`` is of another format.
        InputError: the task has no such label as ``question.target``.
        DataError: a column is missing, or there are bad rows (listed with their lines).
        RecordError: what an interrupted run left is of another file, model, index or question.
        InfluenceError: model or index are missing, have changed or do not belong together.
    """
    if out.exists():
        raise SettingsError(f"{out} exists already; delete it, or name another --out file", field="out")
    config, progress = workspace.config, workspace.progress
    _check_label(workspace, question.target)
    if question.only_wrong and not predicts_labels(workspace.task):
        raise SettingsError(
            f"--only-wrong compares the one label that is predicted for a row with the row's own, and "
            f"{type(workspace.task).__name__} predicts none; leave it out",
            field="only_wrong",
        )
    reader = RowReader(workspace, read_rows(path), target=question.target, only_wrong=question.only_wrong)
    loaded = _load(workspace, question.tier)
    rows = reader.rows(lambda row: query_of(loaded, _item(row)))
    chosen = _wrong(loaded, rows, progress) if question.only_wrong else rows
    index = loaded.attributor.index
    about = {
        "config": config.name,
        "model": loaded.model["digest"],
        # An index that was built again has the same digest, but other handles.
        "index": [loaded.index["digest"], index.manifest.created],
        "input file": file_digest(path),
        "options": asdict(question),
        "rows": json_digest([[row.line, row.target] for row in chosen]),
    }
    written = _PartialFile(out, about)
    shared = written.restore(len(index))
    _explain_rest(loaded, chosen, question, written, shared, progress)
    strongest = shared.most_shared()
    summary = {
        "explained": shared.explained,
        "skipped": len(rows) - shared.explained,
        "shared_examples": shared_examples(shared, strongest, _described(loaded, strongest), SHOWN),
        "shared_groups": shared_groups(shared, index.labels, index.values_of("source") or []),
    }
    written.publish()
    return summary


def partial_folder(out: Path) -> Path:
    """The folder that holds the explanations of ``out`` as long as they are not complete."""
    return out.with_name(f"{out.name}.partial")


def _check_label(workspace: Workspace, target: Target | None) -> None:
    """Refuses, before anything is loaded, a label that no row can be explained for."""
    field = target_field(workspace.fields)
    if field is None or field.kind != "label" or not field.names or not isinstance(target, str):
        return
    if target not in field.names:
        raise InputError(f"unknown label {target!r}; the labels are {listing(field.names)}", field="target")


def _described(loaded: Loaded, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Training examples, each with what a person sees of it in place of its fields."""
    found = []
    for one in loaded.attributor.index.describe(rows):
        seen = show(loaded.task, one["fields"])
        found.append({**one, "fields": {SHOWN: seen} if seen else {}})
    return found


def _load(workspace: Workspace, tier: Tier) -> Loaded:
    loaded = load(workspace)
    if tier == "refined":
        loaded.attributor.refine_with(workspace.train, progress=workspace.progress)
    return loaded


def _answers(loaded: Loaded, rows: Sequence[Asked], question: Question) -> list[dict[str, Any]]:
    """One explanation a row."""
    side = "each" if question.polarity == "both" else question.polarity
    asked = {
        "top_k": question.top_k,
        "polarity": side,
        "group_by": question.group_by,
        "tier": question.tier,
        "include": ["examples", "groups", "modules", *(["parts"] if question.parts else [])],
    }
    items = [_item(row).model_copy(update=asked) for row in rows]
    return [_explanation(answer) for answer in explain(loaded, items)]


def _item(row: Asked) -> EngineItem:
    return EngineItem(input=row.input, target=target_fields(row.target))


def _explanation(answer: Mapping[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        error = answer["error"]
        kind = InputError if error["code"] == BadRequestError.code else InfluenceError
        raise kind(error["message"], field=error.get("field"))
    explanation: dict[str, Any] = answer["explanation"]
    return explanation


def _explain_rest(
    loaded: Loaded,
    rows: Sequence[Asked],
    question: Question,
    written: _PartialFile,
    shared: SharedInfluence,
    progress: Progress,
) -> None:
    """Explains the rows that have not been written yet, writes them, and adds them to ``shared``."""
    attributor = loaded.attributor
    number_of = {handle: row for row, handle in enumerate(attributor.index.table.column("example_handle"))}
    done_before = shared.explained
    note = f"after {done_before:,} that were there already" if done_before else ""
    progress("explaining", 0, len(rows) - done_before, note)
    for start in range(done_before, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        answers = _answers(loaded, batch, question)
        # Every training example's influence on these rows, not only the returned ones': the sums are exact.
        scores = attributor.scores([query_of(loaded, _item(row)) for row in batch], question.tier)
        shared.add(answers, scores, number_of)
        lines = [{"line": row.line, "id": row.id, **answer} for row, answer in zip(batch, answers, strict=True)]
        written.append(lines, shared)
        progress("explaining", shared.explained - done_before, len(rows) - done_before, note)


def _wrong(loaded: Loaded, rows: Sequence[Asked], progress: Progress) -> list[Asked]:
    """The rows whose label is not what the model predicts, with the predicted one as their target instead."""
    task, attributor = loaded.task, loaded.attributor
    wrong = []
    for start in range(0, len(rows), BATCH):
        asked = rows[start : start + BATCH]
        batch = to_device(task.collate([row.input for row in asked]), attributor.device)
        with torch.no_grad():
            predictions = predictions_of(task, task.outputs(attributor.model, batch), batch)
        for row, prediction in zip(asked, predictions, strict=True):
            if prediction is not None and row.target != prediction["label"]:
                wrong.append(replace(row, target=prediction["label"]))
        progress("predicting", start + len(asked), len(rows), f"{len(wrong):,} wrong")
    return wrong


class _PartialFile:
    """A file of explanations that is not complete: its lines so far, and the sums over them.

    The sums say how many bytes of lines they cover and are written after them, whole or not at all; lines that they do
    not cover are of a batch that was cut off.

    Args:
        out: The file that it becomes.
        about: Everything that determines the lines, by its names in messages.
    """

    def __init__(self, out: Path, about: Mapping[str, Any]) -> None:
        self._out, self._about = out, about
        self.folder = partial_folder(out)
        self._lines = self.folder / "explanations.jsonl"
        self._sums = self.folder / "sums.safetensors"

    def restore(self, count: int) -> SharedInfluence:
        """The sums over the lines of an interrupted run, or over nothing, for ``count`` training examples.

        Raises:
            RecordError: the interrupted run was of another file, model, index or question.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._sums.is_file():
            with safe_open(self._sums, "pt") as file:
                covered = json.loads(file.metadata()["kept"])
                sums = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            self._check_same(covered["about"])
            if self._lines.is_file() and self._lines.stat().st_size >= covered["bytes"]:
                os.truncate(self._lines, covered["bytes"])
                return SharedInfluence(explained=covered["explained"], **sums)
        self._lines.write_bytes(b"")
        return SharedInfluence.none_of(count)

    def append(self, lines: Sequence[Mapping[str, Any]], shared: SharedInfluence) -> None:
        """Writes further lines, and the sums over all lines."""
        with self._lines.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
        sync_file(self._lines)
        size = self._lines.stat().st_size
        covered = {"about": self._about, "explained": shared.explained, "bytes": size}
        sums = {name: value for name, value in vars(shared).items() if isinstance(value, torch.Tensor)}
        write_tensors(self._sums, sums, {"kept": json.dumps(covered)})

    def publish(self) -> None:
        """Makes the lines the file."""
        sync_file(self._lines)
        os.replace(self._lines, self._out)
        sync_folder(self._out.parent)
        remove_tree(self.folder)

    def _check_same(self, about: Mapping[str, Any]) -> None:
        different = [name for name, value in self._about.items() if about.get(name) != value]
        if different:
            raise RecordError(
                f"{self.folder} holds explanations of an interrupted run, of which this one differs in "
                f"{', '.join(different)}. Repeat that run to go on with it; or delete the folder, or name another "
                "--out file, to start anew.",
                field="out",
            )

"""Explains one text, or a file of them, without a server: by the code and in the shape that the server has.

A file's explanations are written beside the file that they become, batch by batch, with the sums over all of them: a
run that was interrupted goes on after the last batch that was written whole.
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

from audit_service.config import AuditConfig
from audit_service.engine.explaining import explain, query_of
from audit_service.engine.loading import Loaded, load
from audit_service.schemas import EngineItem, Polarity, Target, Tier
from audit_service.workflows.aggregate_influence import SharedInfluence, shared_examples, shared_groups
from audit_service.workflows.input_files import column_of, input_table, no_column
from audit_service.workspace import Workspace
from influence_engine.attribution.groups import DEFAULT_COLUMNS
from influence_engine.data.examples import scalar
from influence_engine.data.names import listing
from influence_engine.data.report import BadRow, bad_row_lines, plural
from influence_engine.data.settings import label_key
from influence_engine.data.sources import Row, Table
from influence_engine.digests import file_digest, json_digest
from influence_engine.errors import DataError, InfluenceError, InputError, ModelError, RecordError, SettingsError
from influence_engine.files import remove_tree, sync_file, sync_folder
from influence_engine.progress import Progress
from influence_engine.resources import to_device
from influence_engine.tasks import PredictingTask
from influence_engine.tensor_files import write_tensors

BATCH = 16
"""Rows that share a forward and backward pass, and that an interruption can cost."""

TARGET = "target"
"""A column of this name says which label to explain."""


@dataclass(frozen=True)
class Question:
    """What is asked about a text, or about every row of a file.

    Attributes:
        target: Explain this label, whatever the rows say.
        top_k: Training examples of each polarity.
        polarity: Which of them.
        group_by: Columns of the training examples that influence is summed by.
        tier: How influences are obtained.
        only_wrong: Leave out rows whose label is what the model predicts; of the others, explain what it predicts.
    """

    target: str | None = None
    top_k: int = 5
    polarity: Polarity = "both"
    group_by: list[str] = field(default_factory=lambda: list(DEFAULT_COLUMNS))
    tier: Tier = "best"
    only_wrong: bool = False


@dataclass(frozen=True)
class Asked:
    """One row of the file: its text, and the label that is explained instead of the predicted one."""

    line: int
    id: str | int | float | bool | None
    text: str
    target: str | None


def explain_text(workspace: Workspace, text: str, question: Question) -> dict[str, Any]:
    """What ``/audit/explain`` would answer for ``text``, without ids; ``top_k`` examples of each polarity asked for.

    Raises:
        InputError: the text or the target cannot be used.
        InfluenceError: model or index are missing, have changed or do not belong together.
    """
    loaded = _load(workspace, question.tier)
    asked = Asked(line=1, id=None, text=text, target=question.target)
    (answer,) = _answers(loaded, [asked], question)
    return answer


def explain_file(workspace: Workspace, path: Path, out: Path, question: Question) -> dict[str, Any]:
    """Explains every row of ``path`` and writes one explanation a line to ``out``, in the order of the rows.

    Args:
        workspace: Whose model and index.
        path: A .jsonl, .csv or .parquet file. The text is in the column that is named as the task's field, or as the
            training data's column for it; so are ``id`` and the label, where there are any.
        out: The file to write. Until it is complete, what is done lies in the folder ``aside(out)``.
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
    labels = config.task.labels
    if question.target is not None and labels and question.target not in labels:
        raise InputError(f"unknown label {question.target!r}; the labels are {listing(labels)}", field="target")
    table = _table(path)
    columns = _columns(config, table, question)
    loaded = _load(workspace, question.tier)
    rows = _rows(loaded, table, columns, question)
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
    written = _Aside(out, about)
    shared = written.restore(len(index))
    _explain_rest(loaded, chosen, question, written, shared, progress)
    strongest = shared.most_shared()
    summary = {
        "explained": shared.explained,
        "skipped": len(rows) - shared.explained,
        "shared_examples": shared_examples(
            shared, strongest, index.describe(strongest), getattr(loaded.task, "text", None)
        ),
        "shared_groups": shared_groups(shared, index.labels, index.values_of("source") or []),
    }
    written.publish()
    return summary


def aside(out: Path) -> Path:
    """The folder that holds what is done of ``out`` as long as it is not complete."""
    return out.with_name(f"{out.name}.partial")


def _load(workspace: Workspace, tier: Tier) -> Loaded:
    loaded = load(workspace)
    if tier == "refined":
        loaded.attributor.refine_with(workspace.train, progress=workspace.progress)
    return loaded


def _answers(loaded: Loaded, rows: Sequence[Asked], question: Question) -> list[dict[str, Any]]:
    """One explanation a row."""
    side = "each" if question.polarity == "both" else question.polarity
    asked = {"top_k": question.top_k, "polarity": side, "group_by": question.group_by, "tier": question.tier}
    items = [_item(loaded, row).model_copy(update=asked) for row in rows]
    return [_explanation(answer) for answer in explain(loaded, items)]


def _item(loaded: Loaded, row: Asked) -> EngineItem:
    target = None if row.target is None else Target(label=row.target)
    return EngineItem(input={loaded.config.task.text: row.text}, target=target)


def _explanation(answer: Mapping[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        error = answer["error"]
        kind = InputError if error["code"] == InputError.code else InfluenceError
        raise kind(error["message"], field=error.get("field"))
    explanation: dict[str, Any] = answer["explanation"]
    return explanation


def _explain_rest(
    loaded: Loaded,
    rows: Sequence[Asked],
    question: Question,
    written: _Aside,
    shared: SharedInfluence,
    progress: Progress,
) -> None:
    """Explains what is not written yet, writes it, and adds it to ``shared``."""
    attributor = loaded.attributor
    number_of = {handle: row for row, handle in enumerate(attributor.index.table.column("example_handle"))}
    kept = shared.explained
    note = f"after {kept:,} that were there already" if kept else ""
    progress("explaining", 0, len(rows) - kept, note)
    for start in range(kept, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        answers = _answers(loaded, batch, question)
        # Every training example's influence on these rows, not only the returned ones': the sums are exact.
        scores = attributor.scores([query_of(loaded, _item(loaded, row)) for row in batch], question.tier)
        shared.add(answers, scores, number_of)
        lines = [{"line": row.line, "id": row.id, **answer} for row, answer in zip(batch, answers, strict=True)]
        written.append(lines, shared)
        progress("explaining", shared.explained - kept, len(rows) - kept, note)


def _wrong(loaded: Loaded, rows: Sequence[Asked], progress: Progress) -> list[Asked]:
    """The rows whose label is not what the model predicts, with the predicted one as their target instead."""
    task, attributor = loaded.task, loaded.attributor
    if not isinstance(task, PredictingTask):
        raise ModelError(f"--only-wrong needs predictions, and {type(task).__name__} has no method `predictions`")
    wrong = []
    for start in range(0, len(rows), BATCH):
        asked = rows[start : start + BATCH]
        queries = [{loaded.config.task.text: row.text} for row in asked]
        batch = to_device(loaded.task.collate(queries), attributor.device)
        with torch.no_grad():
            predictions = task.predictions(loaded.task.outputs(attributor.model, batch), batch)
        for row, prediction in zip(asked, predictions, strict=True):
            if row.target != prediction["label"]:
                wrong.append(replace(row, target=prediction["label"]))
        progress("predicting", start + len(asked), len(rows), f"{len(wrong):,} wrong")
    return wrong


def _table(path: Path) -> Table:
    table = input_table(path, "input")
    if not table.rows:
        raise DataError(f"{path} has no rows", field="input")
    unreadable = [BadRow(row.line, row.problem) for row in table.rows if row.problem is not None]
    if len(unreadable) == len(table.rows):
        # First, since a file of which nothing can be read has no columns to miss.
        raise _refusal(table, unreadable)
    return table


def _columns(config: AuditConfig, table: Table, question: Question) -> dict[str, str]:
    """The columns of text, label, target and id, as far as there are such."""
    text, label = config.task.text, config.task.label
    roles = {"text": text, "label": label, "target": TARGET, "id": "id"}
    found = {role: column_of(config, table, key) for role, key in roles.items()}
    columns = {role: column for role, column in found.items() if column is not None}
    if "text" not in columns:
        raise no_column(table, text, f"there is no column {text!r} with the text to explain")
    if question.only_wrong and not {"label", "target"} & set(columns):
        what = f"--only-wrong compares predictions with the rows' labels, and there is no column {label!r} with them"
        raise no_column(table, label, what)
    return columns


def _rows(loaded: Loaded, table: Table, columns: Mapping[str, str], question: Question) -> list[Asked]:
    """All rows, checked.

    Raises:
        DataError: some cannot be used; they are listed with their lines.
    """
    rows, bad_rows = [], []
    for row in table.rows:
        try:
            rows.append(_asked(loaded, row, columns, question))
        except DataError as error:
            bad_rows.append(BadRow(row.line, error.message))
    if bad_rows:
        raise _refusal(table, bad_rows)
    return rows


def _asked(loaded: Loaded, row: Row, columns: Mapping[str, str], question: Question) -> Asked:
    if row.problem is not None:
        raise DataError(row.problem)
    given = {role: row.values.get(column) for role, column in columns.items()}
    if given["text"] is None:
        raise DataError(f"{columns['text']!r} is missing")
    label, target = (_label(loaded.config, given.get(role)) for role in ("label", "target"))
    if question.only_wrong and label is None and target is None:
        raise DataError(f"{columns.get('label', TARGET)!r} is missing, and --only-wrong compares it")
    chosen = label or target if question.only_wrong else question.target or target or label
    asked = Asked(line=row.line, id=scalar(given.get("id")), text=given["text"], target=chosen)
    query_of(loaded, _item(loaded, asked))
    return asked


def _label(config: AuditConfig, value: Any) -> str | None:
    """The task's name of a label that a file gives, spelt as in the training data or by that name; None for none."""
    key = "" if value is None else label_key(value)
    if not key:
        return None
    return key if key in config.task.labels else (config.data.train.labels or {}).get(key, key)


def _refusal(table: Table, bad_rows: Sequence[BadRow]) -> DataError:
    lines = [
        f"{table.location}: {len(bad_rows):,} of {plural(len(table.rows), 'row')} cannot be used:",
        *bad_row_lines(bad_rows, len(bad_rows), table.unit),
        "Correct them or leave them out of the file.",
    ]
    return DataError("\n".join(lines), field="input")


class _Aside:
    """What is done of a file of explanations: its lines so far, and the sums over them.

    The sums say how many bytes of lines they cover and are written after them, whole or not at all; lines that they do
    not cover are of a batch that was cut off.

    Args:
        out: The file that it becomes.
        about: Everything that determines the lines, by the names that a message calls them.
    """

    def __init__(self, out: Path, about: Mapping[str, Any]) -> None:
        self._out, self._about = out, about
        self.folder = aside(out)
        self._lines = self.folder / "explanations.jsonl"
        self._sums = self.folder / "sums.safetensors"

    def restore(self, count: int) -> SharedInfluence:
        """The sums over what an interrupted run has written, or over nothing, for ``count`` training examples.

        Raises:
            RecordError: it was another run.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._sums.is_file():
            with safe_open(self._sums, "pt") as file:
                kept = json.loads(file.metadata()["kept"])
                sums = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            self._check_same(kept["about"])
            if self._lines.is_file() and self._lines.stat().st_size >= kept["bytes"]:
                os.truncate(self._lines, kept["bytes"])
                return SharedInfluence(explained=kept["explained"], **sums)
        self._lines.write_bytes(b"")
        return SharedInfluence.none_of(count)

    def append(self, lines: Sequence[Mapping[str, Any]], shared: SharedInfluence) -> None:
        """Writes further lines, and the sums over all lines."""
        with self._lines.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
        sync_file(self._lines)
        size = self._lines.stat().st_size
        kept = {"about": self._about, "explained": shared.explained, "bytes": size}
        sums = {name: value for name, value in vars(shared).items() if isinstance(value, torch.Tensor)}
        write_tensors(self._sums, sums, {"kept": json.dumps(kept)})

    def publish(self) -> None:
        """The lines become the file."""
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

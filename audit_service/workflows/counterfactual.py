"""Counterfactual questions: predicts what a change of the training data does, trains again, and compares."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from audit_service.artifacts.state_places import state_folder
from audit_service.config import AuditConfig
from audit_service.engine.explaining import query_of
from audit_service.engine.loading import load
from audit_service.engine.selecting import rows_of_group, rows_of_handles
from audit_service.schemas import Edit, EngineItem, MeasuredAnswer, Relabel, Selection
from audit_service.workflows.task_inputs import target_fields
from audit_service.workspace import Workspace
from influence_engine.counterfactual import (
    Change,
    editing,
    estimate,
    first_order,
    measure,
    members,
    relabelling,
    removal,
)
from influence_engine.counterfactual.cost import Cost, predict_cost
from influence_engine.counterfactual.measuring import CHANGED, CONTROL
from influence_engine.counterfactual.tangent import STAGE as REPLAYING
from influence_engine.errors import InputError, ResourceError, SettingsError
from influence_engine.progress import Progress
from influence_engine.resources import free_memory, peak_memory, readable_bytes
from influence_engine.tasks import Example, Target, fields_of, group_of, target_field, target_name

EXAMPLES_SHOWN = 100


def retrainings_folder(config: AuditConfig) -> Path:
    """The folder that caches retrained parameters, for jobs and the command line."""
    return state_folder(config) / "retrainings"


@dataclass(frozen=True)
class Question:
    """The question what a prediction would be, had the training data differed; exactly one of three changes is given.

    Attributes:
        input: The fields of the example that is predicted.
        target: The target that is measured, as the task names it; None for what the model predicts.
        without: Training examples to train without.
        relabel: Training examples to train with another target for.
        edit: A training example to train with its text written otherwise.
        replay: Also predict by differentiating along the recorded steps.
    """

    input: Mapping[str, Any]
    target: Target | None = None
    without: Selection | None = None
    relabel: Relabel | None = None
    edit: Edit | None = None
    replay: bool = False

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Question:
        """The question of a job's content, as ``content`` returned it."""
        return cls(
            input=content["input"],
            target=content["target"],
            without=Selection.model_validate(content["without"]) if content["without"] else None,
            relabel=Relabel.model_validate(content["relabel"]) if content["relabel"] else None,
            edit=Edit.model_validate(content["edit"]) if content["edit"] else None,
            replay=content["replay"],
        )

    def content(self) -> dict[str, Any]:
        """The question as a JSON value, equal for equal questions."""
        parts = {name: getattr(self, name) for name in ("without", "relabel", "edit")}
        return {
            "kind": "measure",
            "input": dict(self.input),
            "target": self.target,
            "replay": self.replay,
            **{name: None if part is None else part.model_dump(exclude_none=True) for name, part in parts.items()},
        }


class Measuring:
    """A config's model, index, recorded run and training data, ready to answer counterfactual questions.

    Args:
        workspace: Workspace of the config.
        keep_in: Folder that caches retrained parameters; below the state folder if left out.
        local: Whether examples may also be named by their own ids, which no API shows.

    Raises:
        RecordError: the model has no record, or one whose steps cannot be executed again; the message says what helps.
        InfluenceError: something is missing, has changed, or does not belong together.
    """

    def __init__(self, workspace: Workspace, keep_in: Path | None = None, *, local: bool = False) -> None:
        self.config, self.local = workspace.config, local
        self.keep_in = keep_in or retrainings_folder(workspace.config)
        replayable = workspace.replayable
        self.run, self.task, self.surrogate = replayable.run, replayable.task, replayable.agreement
        self.train = workspace.train
        self.loaded = load(workspace)

    def cost(self, question: Question) -> Cost:
        """The predicted time, memory and disk of an answer."""
        return predict_cost(self.run, self.task, self.train, replay=question.replay)

    def query(self, question: Question) -> dict[str, Any]:
        """The example that is measured; raises ``InputError`` where the input cannot be used."""
        item = EngineItem(input=dict(question.input), target=target_fields(question.target))
        return query_of(self.loaded, item)

    def change(self, question: Question) -> Change:
        """The change of the training data that is asked for.

        Raises:
            InfluenceError: an example, a group or a label does not exist, or nothing would change.
        """
        task = self.task
        if question.without is not None:
            chosen = self._chosen(question, question.without)
            if len(chosen) == len(self.train):
                raise SettingsError("nothing would be left to train on; leave out less", field="without")
            return removal(chosen)
        if question.edit is not None:
            (example_id,) = self._ids([question.edit.example])
            return editing(task, self.train, {example_id: question.edit.text})
        assert question.relabel is not None  # one of the three is given
        label, own = self._label(question.relabel.label), target_name(task)
        have = {example["example_id"] for example in self.train if example.get(own) == label}
        chosen = [name for name in self._chosen(question, question.relabel) if name not in have]
        if not chosen:
            raise SettingsError(f"all of these examples are labelled {label!r} already", field="relabel")
        return relabelling(task, self.train, dict.fromkeys(chosen, label))

    def answer(self, question: Question, progress: Progress) -> MeasuredAnswer:
        """Predicts, trains again, and measures.

        Raises:
            ResourceError: it would need more memory than there is.
            InfluenceError: as ``query`` and ``change``, or the recorded steps do not come out as recorded.
        """
        query, change = self.query(question), self.change(question)
        cost = self.cost(question)
        self._check_memory(cost)
        reported = Countdown(progress, _work(cost, question))
        predicted, errors, seconds = self._predicted([query], change, question, reported)
        task, keep_in = self.task, self.keep_in
        found = measure(
            self.run, task, self.train, [query], change, predicted=predicted, keep_in=keep_in, progress=reported
        )
        return MeasuredAnswer.model_validate(
            {
                **{name: getattr(found, name) for name in ("kind", "changed_examples", "training_examples", "steps")},
                **{name: getattr(found, name) for name in ("control_gap", "seconds", "control_seconds")},
                "change": asdict(found.queries[0]),
                "examples": self._described(change),
                "predicted_error_90": errors,
                "predicted_seconds": seconds,
                "memory_bytes": peak_memory(),
                "memory_predicted_bytes": cost.memory_bytes,
                "model": self.loaded.model,
                "index": self.loaded.index,
                "twin": self.surrogate,
            }
        )

    def _predicted(
        self, queries: Sequence[Example], change: Change, question: Question, progress: Progress
    ) -> tuple[dict[str, Tensor], dict[str, float | None], dict[str, float]]:
        begun = time.monotonic()
        found = estimate(self.loaded.attributor, queries, change, self.train, run=self.run)
        predicted, seconds = {found.tier: found.changes}, {found.tier: time.monotonic() - begun}
        errors: dict[str, float | None] = {found.tier: found.error_90[0]}
        if question.replay:
            begun = time.monotonic()
            task = self.task
            predicted["replayed"] = first_order(self.run, task, self.train, queries, change, progress=progress)
            errors["replayed"] = None
            seconds["replayed"] = time.monotonic() - begun
        return predicted, errors, seconds

    def _chosen(self, question: Question, selection: Selection) -> list[str]:
        """Ids of the selected examples."""
        if selection.examples is not None:
            return self._ids(selection.examples)
        if selection.group is not None:
            ((column, value),) = selection.group.items()
            index = self.loaded.attributor.index
            if self.local:  # at a terminal beside the data, also by what they hold, and what there is is listed
                return members(self._grouped(column), column, value)
            return [index.example_ids[row] for row in rows_of_group(index, column, value)]
        (explained,) = self.loaded.attributor.attribute(
            [self.query(question)], top_k=selection.top_k or 1, polarity=selection.polarity
        )
        if not explained.examples:
            raise SettingsError(f"this prediction has no {selection.polarity} to select", field="polarity")
        return [one.example_id for one in explained.examples]

    def _label(self, given: Any) -> Any:
        """The target that examples are to get; of other kinds than a name or a text, it may be written as JSON."""
        field = target_field(fields_of(self.task))
        if field is None:
            raise SettingsError(
                f"{type(self.task).__name__} teaches no target beside its inputs, so none can be changed",
                field="relabel",
            )
        if field.kind in ("label", "text") or not isinstance(given, str):
            return given
        try:
            return json.loads(given)
        except ValueError:
            raise InputError(
                f"{field.name!r} is of the kind {field.kind!r}; write it as JSON, found {given!r}", field="relabel"
            ) from None

    def _grouped(self, column: str) -> list[Example]:
        """The training examples, with the label that the index groups them under where they have no such field."""
        if column != "label" or any("label" in example for example in self.train):
            return [*self.train]
        return [{**example, "label": group_of(self.task, example)} for example in self.train]

    def _ids(self, handles: Sequence[str]) -> list[str]:
        index = self.loaded.attributor.index
        own = set(index.example_ids) if self.local else set()
        rows = iter(rows_of_handles(index, [handle for handle in handles if handle not in own]))
        return [handle if handle in own else index.example_ids[next(rows)] for handle in handles]

    def _described(self, change: Change) -> list[dict[str, Any]]:
        index = self.loaded.attributor.index
        rows = {example_id: row for row, example_id in enumerate(index.example_ids)}
        described = index.describe([rows[name] for name in change.example_ids[:EXAMPLES_SHOWN]])
        return [{name: one[name] for name in ("example_handle", "label", "source")} for one in described]

    def _check_memory(self, cost: Cost) -> None:
        own = psutil.Process().memory_info().rss
        free = self.config.jobs.memory_bytes or own + free_memory(torch.device("cpu"))
        if cost.memory_bytes > free:
            raise ResourceError(
                f"training again needs about {readable_bytes(cost.memory_bytes)} of memory and there are "
                f"{readable_bytes(free)} (jobs.memory_bytes, or what is free); a machine with more of it can do it: "
                f"bento-audit measure {self.config.name}",
                field="jobs.memory_bytes",
            )


class Countdown:
    """Reports the progress of several stages with the time left until the last of them ends, as ``about ... s left``.

    Args:
        progress: Called with every report.
        work: Stages in their order, with the seconds that each was predicted to take.
    """

    def __init__(self, progress: Progress, work: Mapping[str, float]) -> None:
        self._progress, self._work = progress, dict(work)
        self._stage: str | None = None
        self._begun, self._first = time.monotonic(), 0

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Reports a stage; a ``Progress`` whose note is replaced where the time left is known."""
        if stage != self._stage:
            self._stage, self._begun, self._first = stage, time.monotonic(), max(done - 1, 0)
        left = None
        if stage in self._work and done > self._first:
            each = (time.monotonic() - self._begun) / (done - self._first)
            # Before a few steps have been taken, what was predicted is the better guess.
            own = each * (total - done) if done - self._first > 3 else self._work[stage] * (total - done) / total
            names = list(self._work)
            left = own + sum(self._work[name] for name in names[names.index(stage) + 1 :])
        self._progress(stage, done, total, note if left is None else f"about {left:.0f} s left")


def seconds_left(note: str) -> float | None:
    """The seconds that ``Countdown`` wrote into a note; None where it wrote none."""
    head, _, tail = note.removeprefix("about ").partition(" ")
    return float(head) if tail == "s left" else None


def _work(cost: Cost, question: Question) -> dict[str, float]:
    work = {CONTROL: cost.control_seconds, CHANGED: cost.seconds}
    return {REPLAYING: cost.replay_seconds, **work} if question.replay else work

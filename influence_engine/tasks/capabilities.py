"""What a task can say, with what holds where it does not: one function for each optional part of the contract.

Whoever is not in ``tasks/`` asks these functions and never the task itself for anything but the methods of ``Task``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from influence_engine.errors import SettingsError
from influence_engine.tasks.contract import (
    Batch,
    CuttingTask,
    Example,
    FieldsTask,
    Head,
    HeadTask,
    KeepingTask,
    MeasuredTask,
    PredictingTask,
    ProbabilityTask,
    ProcessorTask,
    ProjectingTask,
    Projection,
    ShowingTask,
    SizedTask,
    Task,
)
from influence_engine.tasks.fields import ExampleField, input_fields, readable_field, target_field

DEFAULT_TARGET = "label"
"""The field that is taken for the target of a task that does not say which are its fields."""


UNSAID_FIELDS = (ExampleField("text", "text"), ExampleField(DEFAULT_TARGET, "label", "target"))
"""What the columns of a data set are taken to be for a task that does not say."""


def fields_of(task: object) -> tuple[ExampleField, ...]:
    """The fields of a task's examples.

    A task that is no ``FieldsTask`` may name them by attributes: ``text`` is the field with a text, ``label`` that with
    the label, ``labels`` what labels are called. What it does not name is not known, and then not asked for.
    """
    if isinstance(task, FieldsTask):
        return tuple(task.fields)
    found = []
    text, label, names = (getattr(task, name, None) for name in ("text", "label", "labels"))
    if isinstance(text, str):
        found.append(ExampleField(text, "text"))
    if isinstance(label, str) or names is not None:
        name = label if isinstance(label, str) else DEFAULT_TARGET
        found.append(ExampleField(name, "label", "target", None if names is None else tuple(map(str, names))))
    return tuple(found)


def labels_of(task: object) -> Sequence[str] | None:
    """What the labels are called, in the order of the outputs; ``None`` where the task has none or does not say."""
    found = target_field(fields_of(task))
    return None if found is None else found.names


def names_its_target(task: object) -> bool:
    """Whether the task itself says which field holds the target, and so which examples are of one mind."""
    return target_field(fields_of(task)) is not None and (
        isinstance(task, FieldsTask) or isinstance(getattr(task, "label", None), str)
    )


def target_name(task: object) -> str:
    """The name of the field that training teaches, ``label`` where the task does not say."""
    found = target_field(fields_of(task))
    return DEFAULT_TARGET if found is None else found.name


def group_of(task: object, example: Example) -> str | None:
    """What influence of a training example is grouped under: its label, or what stands for it."""
    found = target_field(fields_of(task))
    value = example.get(DEFAULT_TARGET if found is None else found.name)
    return (found or ExampleField(DEFAULT_TARGET, "json", "target")).group(value)


def kept(task: object, example: Example) -> Example:
    """The example as an index keeps it: itself, where the task says nothing else."""
    return task.kept(example) if isinstance(task, KeepingTask) else example


def show(task: object, example: Example) -> str:
    """What a person sees of an example, without its target."""
    if isinstance(task, ShowingTask):
        return task.show(example)
    shown = [field.show(example.get(field.name)) for field in input_fields(fields_of(task))]
    return "\n".join(line for line in shown if line)


def editable_field(task: object) -> ExampleField | None:
    """The input that a person can write otherwise: the one that is text; ``None`` where none or several are."""
    return readable_field(fields_of(task))


def processor_of(task: object) -> Any:
    """The tokenizer or image processor that goes with the model; ``None`` where there is none."""
    return task.processor if isinstance(task, ProcessorTask) else getattr(task, "tokenizer", None)


def head_of(task: object) -> Head:
    """How a base model is loaded for the task: by a ``HeadTask`` as it says, else as a classifier of its ``labels``.

    Raises:
        SettingsError: the task says neither.
    """
    if isinstance(task, HeadTask):
        return task.head()
    names = labels_of(task)
    if names is None:
        raise SettingsError(
            f"{type(task).__name__} does not say which head its model has: give it the attribute labels, the names in "
            "the order of the outputs, or the method head; or pass a loaded module as base",
            field="base",
        )
    return classification_head("AutoModelForSequenceClassification", names)


def classification_head(auto_class: str, names: Sequence[str]) -> Head:
    """A head with one output for each name."""
    numbered = dict(enumerate(names))
    settings = {"id2label": numbered, "label2id": {name: number for number, name in numbered.items()}}
    return Head(auto_class, settings, len(numbered))


def predictions_of(task: Task, outputs: Tensor, batch: Batch) -> list[dict[str, Any] | None]:
    """What the task says of a batch's outputs, one an example; ``None`` each where it cannot say."""
    if isinstance(task, PredictingTask):
        return [*task.predictions(outputs, batch)]
    return [None] * outputs.shape[0]


def projection_of(task: object, prediction: Mapping[str, Any] | None) -> Projection:
    """Label and confidence of a prediction, as far as it has any."""
    if prediction is None:
        return Projection(None, None)
    if isinstance(task, ProjectingTask):
        return task.project(prediction)
    label, confidence = prediction.get("label"), prediction.get("confidence")
    return Projection(None if label is None else str(label), None if confidence is None else float(confidence))


def predicts_labels(task: object) -> bool:
    """Whether predictions can be right or wrong: the task predicts one label and says which field has the true one."""
    field = target_field(fields_of(task))
    return isinstance(task, PredictingTask) and field is not None and field.kind == "label"


def is_right(task: object, prediction: Mapping[str, Any] | None, example: Example) -> bool:
    """Whether a task that predicts labels predicted an example's own."""
    return prediction is not None and bool(prediction["label"] == example[target_name(task)])


def confidence_in_own(task: object, prediction: Mapping[str, Any], example: Example) -> float:
    """The probability that a task which predicts labels gives an example's own."""
    return float(prediction["scores"][example[target_name(task)]])


def probabilities_of(task: object, measurements: Tensor) -> Tensor | None:
    """The targets' probabilities, of the same shape; ``None`` where a measurement stands for none."""
    return task.probability(measurements) if isinstance(task, ProbabilityTask) else None


def measurement_unit(task: object) -> str:
    """What measurements and influences are counted in; empty where the task does not say."""
    if isinstance(task, MeasuredTask):
        return task.measurement_unit
    return "log-odds" if isinstance(task, ProbabilityTask) else ""


def example_sizes(task: Task, examples: Sequence[Example]) -> list[int]:
    """Positions (tokens, pixels) that each example takes in a batch of its own."""
    if isinstance(task, SizedTask):
        return task.sizes(examples)
    return [next(iter(task.collate([example]).values())).numel() for example in examples]


def unread_part(task: object, example: Example) -> str | None:
    """What of an example the model did read, where that is not all of it and the task says so."""
    return task.unread(example) if isinstance(task, CuttingTask) else None


def batches_of_like_size(task: Task, examples: Sequence[Example], count: int) -> list[list[int]]:
    """Places in ``examples``, ``count`` a batch and the longest first, so that little of a batch is padding."""
    sizes = example_sizes(task, examples)
    order = sorted(range(len(examples)), key=lambda place: -sizes[place])
    return [order[start : start + count] for start in range(0, len(order), count)]

"""What a fine-tuned model is for: one file a task."""

from influence_engine.tasks.base import (
    Batch,
    CheckingTask,
    DescribedTask,
    Example,
    ExportableTask,
    PredictingTask,
    ProbabilityTask,
    ServingTask,
    SizedTask,
    Task,
    batches_of_like_size,
    describe_task,
    example_sizes,
    with_predicted_targets,
)
from influence_engine.tasks.text_classification import TextClassification

__all__ = [
    "Batch",
    "CheckingTask",
    "DescribedTask",
    "Example",
    "ExportableTask",
    "PredictingTask",
    "ProbabilityTask",
    "ServingTask",
    "SizedTask",
    "Task",
    "TextClassification",
    "batches_of_like_size",
    "describe_task",
    "example_sizes",
    "with_predicted_targets",
]

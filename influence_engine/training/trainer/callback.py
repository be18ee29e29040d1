"""Records a run of the Trainer of ``transformers``.

A callback of the Trainer never sees the batch, and the Trainer drops columns that the model does not know. So the
data set's items carry their row, the collator adds it to the batch, and a hook removes it before the model runs::

    recording = RecordingCallback(task, "runs/mine")
    Trainer(
        model,
        arguments,
        train_dataset=RecordingDataset(examples),
        data_collator=recording.collate,
        optimizers=(SmoothAdamW(model.parameters(), lr=5e-5), None),
        callbacks=[recording],
    ).train()

The run is never interfered with: the record says whether its steps can be executed again, and if not, why.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import TrainerCallback

from influence_engine.errors import SettingsError
from influence_engine.tasks import Example, Task
from influence_engine.training.trainer.hooks import ROWS, TrainerHooks
from influence_engine.training.trainer.run import TrainerRun, TrainerSetup


class RecordedItem(NamedTuple):
    """An example with its row in the data set; not a dict, of which the Trainer would drop unknown columns."""

    row: int
    example: Example


class RecordingDataset(Dataset[RecordedItem]):
    """A data set whose items carry their row; for training and evaluation, so that one collator serves both."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.examples)

    def __getitem__(self, row: int) -> RecordedItem:
        """The example in that row."""
        if not 0 <= row < len(self.examples):
            raise IndexError(row)
        return RecordedItem(row, self.examples[row])

    def __iter__(self) -> Iterator[RecordedItem]:
        """All items, in order."""
        return (self[row] for row in range(len(self)))


class RecordingCollator:
    """Collates as the task does and adds the rows of the examples to the batch."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __call__(self, items: Sequence[RecordedItem]) -> dict[str, Tensor]:
        """The collated batch, with the rows ``[B]`` under the key ``ROWS``."""
        batch = self._task.collate([item.example for item in items])
        return {**batch, ROWS: torch.tensor([item.row for item in items])}


class RecordingCallback(TrainerCallback):
    """Writes the record that ``finetune`` writes, for a run of the Trainer.

    Args:
        task: Collates the examples; its loss must be the loss that the model computes.
        record_to: A new or empty folder.
        dropout_seed: Seeds torch's random numbers at every step, so that a run with dropout can be executed again;
            None leaves torch's random state alone.
        checkpoints: How many times weights and optimiser state are saved; None takes about the square root of the
            number of steps.

    Attributes:
        collate: The ``data_collator`` for the Trainer.
    """

    def __init__(
        self,
        task: Task,
        record_to: str | os.PathLike[str],
        *,
        dropout_seed: int | None = None,
        checkpoints: int | None = None,
    ) -> None:
        self.collate = RecordingCollator(task)
        self._task = task
        self._record_to = record_to
        self._dropout_seed = dropout_seed
        self._checkpoints = checkpoints
        self._hooks: TrainerHooks | None = None
        self._run: TrainerRun | None = None

    def on_init_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        """Adds the hooks that remove rows from the model's inputs; evaluation before training has them, too."""
        self._hooks = TrainerHooks(model)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, model: nn.Module, optimizer: Any, **kwargs: Any
    ) -> None:
        """Begins the record with the weights before the first step.

        Raises:
            SettingsError: the Trainer's data set is not a ``RecordingDataset``.
            RecordError: the folder holds something else.
        """
        data = getattr(kwargs.get("train_dataloader"), "dataset", None)
        if not isinstance(data, RecordingDataset):
            raise SettingsError(
                f"train_dataset is a {type(data).__name__}; wrap the examples in RecordingDataset(examples)",
                field="train_dataset",
            )
        if self._hooks is None:
            # The callback was added by add_callback, after the Trainer had been made.
            self._hooks = TrainerHooks(model)
        setup = TrainerSetup(
            task=self._task,
            model=model,
            # accelerate wraps the optimiser; the wrapped one has the state.
            optimizer=getattr(optimizer, "optimizer", optimizer),
            examples=data.examples,
            arguments=args,
            steps_done=state.global_step,
            total_steps=state.max_steps,
        )
        self._run = TrainerRun(
            setup, self._hooks, self._record_to, dropout_seed=self._dropout_seed, checkpoints=self._checkpoints
        )

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Clears the hooks' log and seeds the step."""
        self._current().begin_step()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Records what the step consists of, once all of its gradients are there, clipped."""
        self._current().before_update()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes a checkpoint of the updated weights after the chosen steps."""
        self._current().after_update()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Completes the record."""
        self._current().finish()

    def _current(self) -> TrainerRun:
        assert self._run is not None, "on_train_begin comes first"
        return self._run

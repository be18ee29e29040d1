"""Hooks on a model that the Trainer trains: which rows of the data set it is given, and which losses it returns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

ROWS = "example_rows"
"""The key under which a batch carries the rows of its examples in the data set."""


class TrainerHooks:
    """Removes the rows from a model's inputs and, while the model is trained, logs them with the losses.

    Attributes:
        rows: For each micro-batch since ``clear`` the rows of its examples, ``[B]``.
        losses: For each micro-batch since ``clear`` the loss that the model returned, where it returned one.
        items: The number of labels in the whole step, where the Trainer gives it to the model to divide its loss by.
    """

    def __init__(self, model: nn.Module) -> None:
        self._paused = False
        self.clear()
        model.register_forward_pre_hook(self._before, with_kwargs=True)
        model.register_forward_hook(self._after)

    def clear(self) -> None:
        """Empties the log, for a new step."""
        self.rows: list[Tensor] = []
        self.losses: list[float] = []
        self.items: float | None = None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Logs nothing within it, for forward passes that are no part of the training."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        rows = kwargs.get(ROWS)
        if self._logging() and rows is not None:
            self.rows.append(rows.detach().cpu())
            items = kwargs.get("num_items_in_batch")
            self.items = None if items is None else float(items)
        return args, {name: value for name, value in kwargs.items() if name != ROWS}

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        loss = output.get("loss") if isinstance(output, Mapping) else None
        if self._logging() and loss is not None:
            self.losses.append(float(loss.detach()))

    def _logging(self) -> bool:
        # Evaluation runs without gradients.
        return torch.is_grad_enabled() and not self._paused

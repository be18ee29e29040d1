"""Hooks on a model that is trained by somebody else: which rows it sees, and which loss it returns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

ROWS = "example_rows"
"""The key under which a batch carries the rows of its examples."""


class BatchReader:
    """Takes the rows off a model's inputs and, while it is trained, notes them.

    Attributes:
        rows: For each micro-batch since ``clear`` the rows of its examples, ``[B]``.
        losses: For each micro-batch the loss that the model returned, where it returned one.
        items: The number of labels in the whole step, where the model is told it to divide by.
    """

    def __init__(self, model: nn.Module) -> None:
        self._paused = False
        self.clear()
        model.register_forward_pre_hook(self._before, with_kwargs=True)
        model.register_forward_hook(self._after)

    def clear(self) -> None:
        """Forgets what was noted: a new step begins."""
        self.rows: list[Tensor] = []
        self.losses: list[float] = []
        self.items: float | None = None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within it nothing is noted: these passes are no part of the training."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        rows = kwargs.get(ROWS)
        if self._noting() and rows is not None:
            self.rows.append(rows.detach().cpu())
            items = kwargs.get("num_items_in_batch")
            self.items = None if items is None else float(items)
        return args, {name: value for name, value in kwargs.items() if name != ROWS}

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        loss = output.get("loss") if isinstance(output, Mapping) else None
        if self._noting() and loss is not None:
            self.losses.append(float(loss.detach()))

    def _noting(self) -> bool:
        return torch.is_grad_enabled() and not self._paused

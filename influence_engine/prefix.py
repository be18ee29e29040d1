"""Runs the layers that two models share only once.

Where fine-tuning left the lower layers frozen, the base model computes the same there as the fine-tuned one. Their
outputs are kept while the fine-tuned model runs, and the base model takes them instead of computing them again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


class SharedPrefix:
    """The largest modules without anything trained in them, by name, of a model and its base.

    Only those that ran before the first trained module of a forward pass are taken over: what comes later has inputs
    that differ between the two.

    Args:
        model: The fine-tuned model.
        base: The base model; its modules of the same names have the same weights.
    """

    def __init__(self, model: nn.Module, base: nn.Module) -> None:
        changed = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        self._twins: list[tuple[nn.Module, nn.Module]] = []
        self._trained: list[nn.Module] = []
        twins = dict(base.named_modules())
        taken: list[str] = []
        for name, module in model.named_modules():
            if any(name.startswith(f"{prefix}.") for prefix in taken):
                continue
            own = {id(parameter) for parameter in module.parameters()}
            if own and not own & changed:
                taken.append(name)
                self._twins.append((module, twins[name]))
            elif {id(parameter) for parameter in module.parameters(recurse=False)} & changed:
                self._trained.append(module)
        self._kept: dict[int, list[Any]] = {}
        self._reached_trained = False

    @contextlib.contextmanager
    def keeping(self) -> Iterator[None]:
        """While the fine-tuned model runs: keeps the outputs of the shared modules."""
        self._kept = {}
        self._reached_trained = False
        handles: list[RemovableHandle] = [module.register_forward_pre_hook(self._stop) for module in self._trained]
        handles += [
            module.register_forward_hook(self._keeper(number)) for number, (module, _) in enumerate(self._twins)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def recalling(self) -> Iterator[None]:
        """While the base model runs on the same batch: its shared modules answer with what was kept."""
        recalled = [self._twins[number][1] for number in self._kept]
        for outputs, module in zip(self._kept.values(), recalled, strict=True):
            module.forward = _recall(outputs, module.forward)
        try:
            yield
        finally:
            for module in recalled:
                del module.forward
            self._kept = {}

    def _stop(self, module: nn.Module, args: Any) -> None:
        self._reached_trained = True

    def _keeper(self, number: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not self._reached_trained:
                self._kept.setdefault(number, []).append(_detached(output))

        return hook


def _recall(outputs: list[Any], compute: Any) -> Any:
    remaining = list(reversed(outputs))

    def forward(*args: Any, **kwargs: Any) -> Any:
        # A module that runs once more, above trained ones, has other inputs there.
        return remaining.pop() if remaining else compute(*args, **kwargs)

    return forward


def _detached(output: Any) -> Any:
    if isinstance(output, torch.Tensor):
        return output.detach()
    if type(output) in (tuple, list):
        return type(output)(_detached(part) for part in output)
    return output

"""Runs the frozen layers below the first trained one only once.

Where training leaves the lower layers frozen, they compute the same on the same batch whatever the trained weights are:
in the base model and the fine-tuned one, in a step and every later execution of that step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

Kept = dict[str, list[Any]]
"""Outputs of frozen modules on one batch, by the module's name, in the order of its calls."""


class FrozenPrefix:
    """The largest modules without anything trained in them.

    Only those that run before the first trained module of a forward pass are kept: what comes later has inputs that
    depend on trained weights.

    Args:
        model: A model; another of the same structure has the same names.
        trained: Names of the trained parameters.
    """

    def __init__(self, model: nn.Module, trained: Collection[str]) -> None:
        changed = {id(parameter) for name, parameter in model.named_parameters() if name in set(trained)}
        self._frozen: dict[str, nn.Module] = {}
        self._trained: list[nn.Module] = []
        for name, module in model.named_modules():
            if any(name.startswith(f"{taken}.") for taken in self._frozen):
                continue
            own = {id(parameter) for parameter in module.parameters()}
            if own and not own & changed:
                self._frozen[name] = module
            elif {id(parameter) for parameter in module.parameters(recurse=False)} & changed:
                self._trained.append(module)

    @contextlib.contextmanager
    def keeping(self) -> Iterator[Kept]:
        """While the model runs on a batch: yields what ``recalling`` takes, filled as the model runs."""
        kept: Kept = {}
        reached: list[bool] = []
        handles: list[RemovableHandle] = [
            module.register_forward_pre_hook(lambda *_: reached.append(True)) for module in self._trained
        ]
        handles += [module.register_forward_hook(_keeper(kept, name, reached)) for name, module in self._frozen.items()]
        try:
            yield kept
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def recalling(self, kept: Kept) -> Iterator[None]:
        """While a model runs on the same batch: the frozen modules answer with what was kept."""
        recalled = [self._frozen[name] for name in kept]
        for module, outputs in zip(recalled, kept.values(), strict=True):
            module.forward = _recall(outputs, module.forward)
        try:
            yield
        finally:
            for module in recalled:
                del module.forward


def kept_bytes(kept: Kept) -> int:
    """Bytes of the tensors kept."""
    return sum(tensor.nbytes for outputs in kept.values() for output in outputs for tensor in _tensors(output))


def _keeper(kept: Kept, name: str, reached: list[bool]) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        if not reached:
            kept.setdefault(name, []).append(_detached(output))

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


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif type(output) in (tuple, list):
        for part in output:
            yield from _tensors(part)

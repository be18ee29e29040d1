"""Caches the outputs of the frozen layers below the first trained one.

Where training leaves the lower layers frozen, they compute the same outputs on the same batch whatever the trained
weights are: in the base model and the fine-tuned one, in a training step and every later execution of that step.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

CachedPrefix = dict[str, list[Any]]
"""Outputs of frozen modules on one batch, by module name, in the order of each module's calls."""


class FrozenPrefix:
    """The largest modules of a model without any trained parameter.

    Only the outputs of modules that run before the first trained module of a forward pass are cached: the inputs of
    later modules depend on trained weights.

    Args:
        model: The model; a ``CachedPrefix`` is valid for every model of the same structure and frozen weights.
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
            if isinstance(module, nn.ModuleList | nn.ModuleDict):
                continue  # nobody calls it: what is cached are outputs of what is in it
            if own and not own & changed:
                self._frozen[name] = module
            elif {id(parameter) for parameter in module.parameters(recurse=False)} & changed:
                self._trained.append(module)

    @contextlib.contextmanager
    def caching(self) -> Iterator[CachedPrefix]:
        """Within it the model runs on one batch as ever; the cache that is yielded is filled as the model runs."""
        cached: CachedPrefix = {}
        reached: list[bool] = []
        chain = _Chain()
        handles: list[RemovableHandle] = [
            module.register_forward_pre_hook(lambda _, args: _reach(reached, chain, args)) for module in self._trained
        ]
        handles += [
            module.register_forward_hook(_caching_hook(cached, name, reached, chain))
            for name, module in self._frozen.items()
        ]
        try:
            yield cached
            if chain.holds:
                chain.forget(cached)
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def reusing(self, cached: CachedPrefix) -> Iterator[None]:
        """Within it the model runs on the batch of ``cached``; its frozen modules return their cached outputs."""
        modules = [self._frozen[name] for name in cached]
        for module, outputs in zip(modules, cached.values(), strict=True):
            module.forward = _cached_forward(outputs, module.forward)
        try:
            yield
        finally:
            for module in modules:
                del module.forward


class _Chain:
    """Whether the frozen modules ran one after the other, each on the output of the last one and on nothing else.

    Then only the last one's output is needed again. In a convolutional network the outputs of the first modules are a
    hundred times larger than that. Those are replaced by NaN, of any shape and no size: were something to read them
    after all, all that depends on it would be NaN, and not silently wrong.
    """

    def __init__(self) -> None:
        self.holds = True
        self.ended = False
        self._last: Any = None
        self._earlier: list[weakref.ref[torch.Tensor]] = []

    def runs(self, args: Any, output: Any) -> None:
        """A frozen module has run."""
        first = self._last is None
        fits = isinstance(output, torch.Tensor) and len(args) == 1 and (first or args[0] is self._last)
        self.holds = self.holds and fits
        if not first and self.holds:
            self._earlier.append(weakref.ref(self._last))
        self._last = output if self.holds else None

    def ends(self, args: Any) -> None:
        """The first trained module is about to run; what the model still holds of the others, it may read again."""
        held = [one for one in (ref() for ref in self._earlier) if one is not None]
        self.holds = self.holds and self._last is not None and not held and len(args) == 1 and args[0] is self._last
        self._last, self.ended = None, True

    def forget(self, cached: CachedPrefix) -> None:
        """Replaces all cached outputs but the last one's."""
        if self.ended and all(len(outputs) == 1 for outputs in cached.values()):
            for name in list(cached)[:-1]:
                (output,) = cached[name]
                cached[name] = [output.new_full((1,), float("nan")).expand(output.shape)]


def cached_bytes(cached: CachedPrefix) -> int:
    """Bytes of all cached tensors."""
    tensors = [tensor for outputs in cached.values() for output in outputs for tensor in _tensors(output)]
    return sum(tensor.untyped_storage().nbytes() if 0 in tensor.stride() else tensor.nbytes for tensor in tensors)


def _reach(reached: list[bool], chain: _Chain, args: Any) -> None:
    if not reached:
        chain.ends(args)
    reached.append(True)


def _caching_hook(cached: CachedPrefix, name: str, reached: list[bool], chain: _Chain) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        if not reached:
            cached.setdefault(name, []).append(_detached(output))
            chain.runs(args, output)

    return hook


def _cached_forward(outputs: list[Any], compute: Any) -> Any:
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

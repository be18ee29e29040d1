"""Choosing which parameters of a model are trained: all, adapters, a number of upper layers, or by name."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from influence_engine.errors import ModelError, SettingsError

CHOICES = "'all', 'lora', or a number of upper layers such as 2; or a list of names such as ['classifier']"
"""What ``trainable`` may be, for messages."""


def choose_trainable(model: nn.Module, trainable: str | int | Sequence[str]) -> list[str]:
    """Sets ``requires_grad`` on the parameters that are trained and freezes all others.

    A normalisation layer with running statistics that is frozen already (``requires_grad=False``, in a model that is
    not frozen altogether) stays so unless it is named: convolutional networks are commonly fine-tuned in this way.

    Args:
        model: The model; for ``"lora"`` one that ``add_lora`` returned.
        trainable: ``"all"`` parameters; ``"lora"``: the adapters; a number of upper layers: the last blocks of the
            model's longest list of equal blocks, with everything that is registered after that list (final norm,
            pooler, head); or a list of names of parameters or modules (with all parameters within) and glob patterns
            of such names, in which ``*`` stands for dots as well: ``["classifier", "bert.encoder.layer.5.*"]``.

    Returns:
        The names of the trained parameters, in the model's order.

    Raises:
        SettingsError: the choice does not exist for this model; for a name or pattern without a match the message
            names the nearest module or parameter.
    """
    frozen = set(left_frozen(model, trainable))
    chosen = [name for name in _selected(model, trainable) if name not in frozen]
    if not chosen:
        raise SettingsError(
            f"trainable is {trainable!r}, which leaves nothing of {type(model).__name__} to train: its parameters are "
            "those of frozen normalisation layers",
            field="trainable",
        )
    set_trainable(model, chosen)
    return chosen


def left_frozen(model: nn.Module, trainable: str | int | Sequence[str]) -> list[str]:
    """Names of the parameters that ``choose_trainable`` leaves frozen although ``trainable`` includes them.

    They are those of normalisation layers with running statistics that are frozen as a whole. There are none where
    ``trainable`` is a list of names, nor in a model that is frozen altogether: its normalisation is not singled out.
    """
    if _is_names(trainable) or not any(parameter.requires_grad for parameter in model.parameters()):
        return []
    frozen: set[str] = set()
    for prefix, module in model.named_modules():
        if has_running_statistics(module):
            own = list(module.named_parameters(prefix))
            if not any(parameter.requires_grad for _, parameter in own):
                frozen.update(name for name, _ in own)
    return [name for name in _selected(model, trainable) if name in frozen] if frozen else []


def set_trainable(model: nn.Module, names: Iterable[str]) -> None:
    """Sets ``requires_grad`` on exactly the named parameters.

    Raises:
        ModelError: the model has no parameter of such a name.
    """
    chosen = set(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
        chosen.discard(name)
    if chosen:
        raise ModelError(f"{type(model).__name__} has no parameter {sorted(chosen)[0]!r}", field="trainable")


def freeze_unchanged(model: nn.Module, base: nn.Module) -> None:
    """Freezes the parameters that equal the base model's bit for bit: its fine-tuning did not train them."""
    before = dict(base.named_parameters())
    for name, parameter in model.named_parameters():
        if name in before and torch.equal(parameter, before[name]):
            parameter.requires_grad_(False)


def has_running_statistics(module: nn.Module) -> bool:
    """Whether a module normalises by running statistics, which training mode would change (``BatchNorm2d``)."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) or isinstance(
        getattr(module, "running_mean", None), torch.Tensor
    )


def block_list(model: nn.Module) -> tuple[str, int] | None:
    """Name and length of the longest list of two or more blocks of one class; ``None`` where there is none.

    Of several equally long lists, such as an encoder's and a decoder's, it is the last.
    """
    best: tuple[str, int] | None = None
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) < 2:
            continue
        if len({type(block) for block in module}) == 1 and (best is None or len(module) >= best[1]):
            best = (name, len(module))
    return best


def _selected(model: nn.Module, trainable: str | int | Sequence[str]) -> list[str]:
    """The parameters that a choice includes, whether they are frozen or not."""
    names = [name for name, _ in model.named_parameters()]
    if trainable == "all":
        return names
    if trainable == "lora":
        chosen = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        if not any("lora_" in name for name in chosen):
            raise SettingsError("trainable is 'lora', but the model has no adapters", field="trainable")
        return chosen
    if isinstance(trainable, int) and not isinstance(trainable, bool) and trainable >= 1:
        return _upper_layers(model, names, trainable)
    if not isinstance(trainable, int) and _is_names(trainable):
        return _matching(model, names, trainable)
    raise SettingsError(f"trainable is {trainable!r}; allowed are {CHOICES}", field="trainable")


def _upper_layers(model: nn.Module, names: list[str], count: int) -> list[str]:
    found = block_list(model)
    if found is None:
        raise SettingsError(
            f"{type(model).__name__} has no list of layers to take the upper {count} of; use 'all', 'lora' or a list "
            "of names",
            field="trainable",
        )
    where, length = found
    if count > length:
        raise SettingsError(f"trainable is {count}, but the model has {length} layers ({where})", field="trainable")
    prefix = f"{where}." if where else ""
    blocks = tuple(f"{prefix}{number}." for number in range(length - count, length))
    last = max(position for position, name in enumerate(names) if name.startswith(prefix))
    return [name for position, name in enumerate(names) if name.startswith(blocks) or position > last]


def _is_names(trainable: object) -> bool:
    return (
        isinstance(trainable, Sequence)
        and not isinstance(trainable, str)
        and len(trainable) > 0
        and all(isinstance(one, str) and one for one in trainable)
    )


def _matching(model: nn.Module, names: list[str], patterns: Sequence[str]) -> list[str]:
    modules = [name for name, module in model.named_modules() if name and any(True for _ in module.parameters())]
    chosen: set[str] = set()
    for pattern in patterns:
        within = tuple(f"{name}." for name in modules if fnmatch.fnmatchcase(name, pattern))
        found = [name for name in names if fnmatch.fnmatchcase(name, pattern) or name.startswith(within)]
        if not found:
            raise SettingsError(
                f"trainable names {pattern!r}, but {type(model).__name__} has no such parameter or module"
                f"{_nearest(pattern, modules, names)}",
                field="trainable",
            )
        chosen.update(found)
    return [name for name in names if name in chosen]


def _nearest(pattern: str, modules: list[str], names: list[str]) -> str:
    """Ends a message by the name that is nearest to a pattern, or by the outermost modules where none is near."""
    wanted = pattern.rstrip("*").rstrip(".")
    near = difflib.get_close_matches(wanted, [*modules, *names], n=1)
    if near:
        return f"; the nearest is {near[0]!r}"
    last = wanted.rpartition(".")[2]
    by_last = {name.rpartition(".")[2]: name for name in reversed([*modules, *names])}
    near = difflib.get_close_matches(last, by_last, n=1)
    if near:
        return f"; the nearest is {by_last[near[0]]!r}"
    outermost = [name for name in modules if "." not in name]
    return f"; its outermost modules are {', '.join(outermost)}" if outermost else ""

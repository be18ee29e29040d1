"""Promise: the base model answers the same whether it computes the shared layers again or takes them over."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from influence_engine.models.frozen_prefix import FrozenPrefix, cached_bytes


class Blocks(nn.Module):
    """An embedding, blocks in a row, one of them called twice, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(9, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(4))
        self.side = nn.Linear(6, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.side(self.side(self.table(ids)))
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden + self.side(hidden)).mean(1)


def pair(trained: tuple[str, ...]) -> tuple[nn.Module, nn.Module, FrozenPrefix, FrozenPrefix]:
    """A fine-tuned model with these parts trained, its base, and the frozen parts of both."""
    base, model = Blocks().requires_grad_(False), Blocks()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
        if name.startswith(trained):
            parameter.data += 0.3 * torch.randn_like(parameter)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return model, base, FrozenPrefix(model, names), FrozenPrefix(base, names)


@pytest.mark.parametrize("trained", [("head",), ("blocks.3", "head"), ("blocks.1",), ("table",), ("",)])
def test_base_outputs_are_unchanged(trained: tuple[str, ...]) -> None:
    model, base, of_model, of_base = pair(trained)
    ids = torch.randint(0, 9, (3, 5))
    expected = base(ids)
    for _ in range(2):
        with of_model.caching() as cached:
            model(ids)
        with of_base.reusing(cached):
            assert torch.equal(base(ids), expected)
    assert torch.equal(base(ids), expected)


def test_shared_layers_below_the_trained_ones_are_not_computed_again() -> None:
    model, base, of_model, of_base = pair(("blocks.3", "head"))
    ids = torch.randint(0, 9, (3, 5))
    computed: list[str] = []
    for name in ("blocks.0.0", "blocks.2.0", "blocks.3.0"):
        base.get_submodule(name).register_forward_hook(lambda *_, name=name: computed.append(name))
    with of_model.caching() as cached:
        model(ids)
    with of_base.reusing(cached):
        base(ids)
    assert computed == ["blocks.3.0"]
    assert cached_bytes(cached) == (1 + 2 + 3) * 3 * 5 * 6 * 4


def test_a_shared_layer_that_also_runs_above_trained_ones_is_computed_there() -> None:
    model, base, of_model, of_base = pair(("blocks.3", "head"))
    ids = torch.randint(0, 9, (3, 5))
    with of_model.caching() as cached:
        model(ids)
    with of_base.reusing(cached):
        recalled = base(ids)
    torch.testing.assert_close(recalled, base(ids))


class Chain(nn.Module):
    """Wide layers first, narrow ones above; with ``skip``, the head reads the first one's output again."""

    def __init__(self, *, skip: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(4, 400), nn.Linear(400, 40), nn.Linear(40, 4)])
        self.head = nn.Linear(4, 2)
        self.skip = skip

    def forward(self, inputs: Tensor) -> Tensor:
        first = hidden = self.layers[0](inputs)
        if not self.skip:
            del first
        for layer in self.layers[1:]:
            hidden = layer(hidden)
        return self.head(hidden) + (first.mean(-1, keepdim=True) if self.skip else 0)


@pytest.mark.parametrize("skip", [False, True])
def test_of_a_chain_only_what_is_read_again_takes_memory(*, skip: bool) -> None:
    model = Chain(skip=skip)
    prefix = FrozenPrefix(model, ["head.weight", "head.bias"])
    inputs = torch.randn(5, 4)
    with torch.no_grad():
        expected = model(inputs)
        with prefix.caching() as cached:
            model(inputs)
        with prefix.reusing(cached):
            assert torch.equal(model(inputs), expected)
    assert cached_bytes(cached) == 4 * (5 * 444 if skip else 5 * 4 + 2)


def test_what_was_forgotten_is_never_read_silently() -> None:
    model = Chain(skip=False)
    prefix = FrozenPrefix(model, ["head.weight", "head.bias"])
    with torch.no_grad():
        with prefix.caching() as cached:
            model(torch.randn(5, 4))
        model.skip = True  # the model comes to read what it did not read before
        with prefix.reusing(cached):
            assert bool(model(torch.randn(5, 4)).isnan().all())

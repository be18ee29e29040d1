"""Promise: a query encodes the same from buffers with room for more positions, whatever was in them before."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from influence_engine.gradients import LayerGradient
from influence_engine.gradients.factors import DenseGradient, FactoredGradient, IndexedGradient
from influence_engine.index.encoding.cuda_graph import Buffers, signature


def of_length(positions: int, seed: int) -> dict[str, LayerGradient]:
    """One query's gradients in layers of every kind."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    rows = torch.randint(0, 9, (1, positions), generator=generator)
    return {
        "table": IndexedGradient(rows, random(1, positions, 4), height=9),
        "linear": FactoredGradient(random(1, positions, 5), random(1, positions, 4)),
        "head": FactoredGradient(random(1, 1, 2), random(1, 1, 4)),
        "norm": DenseGradient(random(1, 4, 2)),
    }


@given(lengths=st.lists(st.integers(1, 100), min_size=2, max_size=6), seed=st.integers(0, 99))
def test_buffers_hold_what_they_were_filled_with_last(lengths: list[int], seed: int) -> None:
    queries = [of_length(length, seed + number) for number, length in enumerate(lengths)]
    buffers = {signature(query): Buffers(query) for query in queries}

    for query in queries:
        own = buffers[signature(query)]
        own.fill(query)
        for name, gradient in query.items():
            held = own.gradients[name]
            torch.testing.assert_close(held.dense(), gradient.dense())
            torch.testing.assert_close(held.squared_norms(), gradient.squared_norms())


def test_few_signatures_serve_many_lengths() -> None:
    assert len({signature(of_length(length, seed=0)) for length in range(2, 129)}) == 4

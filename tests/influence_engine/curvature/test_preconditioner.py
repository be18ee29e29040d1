"""Promises: squared gradients that are products of rows and columns give Adam's preconditioner; words that no sampled
example contains are rare ones."""

from __future__ import annotations

import torch
from torch import nn

from influence_engine.curvature import SecondMomentEstimate, adam_preconditioner
from influence_engine.gradients import FactoredGradient, IndexedGradient, track


def test_the_estimated_preconditioner_is_adams_up_to_a_factor() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.rand(5, generator=generator) + 0.1, torch.rand(7, generator=generator) + 0.1
    model = nn.Sequential(nn.Linear(7, 5, bias=False))
    tracked, fit = track(model), SecondMomentEstimate()
    for _ in range(50):
        left = torch.randn(400, 1, 5, generator=generator) * rows.sqrt()
        right = torch.randn(400, 1, 7, generator=generator) * columns.sqrt()
        fit.add({"0": FactoredGradient(left, right)}, 400)
    found = fit.preconditioner(tracked)["0"]
    expected = adam_preconditioner(tracked, {"0.weight": torch.outer(rows, columns)}, 0.0)["0"]
    ratio = torch.outer(found.row, found.column) / torch.outer(expected.row, expected.column)
    torch.testing.assert_close(ratio / ratio.mean(), torch.ones(5, 7), rtol=0.03, atol=0)


def test_a_word_that_no_example_has_is_taken_for_one_that_a_single_example_has() -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 4))
    seen = torch.randint(0, 40, (64, 6), generator=generator)
    seen[0, 0] = 45  # once
    fit = SecondMomentEstimate()
    fit.add({"0": IndexedGradient(seen, torch.ones(64, 6, 4), 50)}, 64)
    row = fit.preconditioner(track(model))["0"].row
    assert bool(row.isfinite().all())
    assert float(row[49]) > float(row[45]) > float(row[:40].max())
    assert float(row[49] / row[45]) < 2**0.25 * 1.01


def test_a_layer_without_any_gradient_has_a_preconditioner_of_ones() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    fit = SecondMomentEstimate()
    fit.add({"0": FactoredGradient(torch.ones(4, 1, 2), torch.ones(4, 1, 4))}, 4)
    fit.add({"1": FactoredGradient(torch.zeros(4, 1, 2), torch.ones(4, 1, 3))}, 4)
    unused = fit.preconditioner(track(model))["1"]
    assert torch.equal(unused.row, torch.ones(2))
    assert torch.equal(unused.column, torch.ones(3))

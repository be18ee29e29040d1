"""One query at a time is encoded on a GPU as it is kernel by kernel, at every length and from several threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from influence_engine import Attributor, InfluenceIndex
from influence_engine.gradients import LayerGradient, tracing
from influence_engine.index.encoding.cuda_graph import GraphedEncoding
from influence_engine.resources import to_device

LENGTHS = (1, 3, 12, 40, 70, 5, 33, 2)


@pytest.fixture
def attributor(task: Any, make_model: Callable[..., nn.Module], make_examples: Any, tmp_path: Path) -> Attributor:
    model = make_model(max_position_embeddings=128)
    return Attributor(model, task, InfluenceIndex.build(model, task, make_examples(36), tmp_path / "index"))


def gradients_of(attributor: Attributor, words: int) -> dict[str, LayerGradient]:
    batch = to_device(attributor.task.collate([{"text": " ".join(["film"] * words)}]), attributor.device)
    with tracing(attributor.model, attributor.task, attributor.tracked.layers, batch) as trace:
        return trace.layer_gradients(attributor.task.measurement(trace.outputs, trace.batch))


def same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("most", [1, 2, 32])
def test_every_length_as_kernel_by_kernel(most: int, attributor: Attributor) -> None:
    kernel_by_kernel = attributor.index.encoder.encode_with_share
    graphed = GraphedEncoding(kernel_by_kernel, most)
    for words in LENGTHS:
        gradients = gradients_of(attributor, words)
        same(graphed(gradients), kernel_by_kernel(gradients))


def test_threads_do_not_mix_their_queries(attributor: Attributor) -> None:
    index = attributor.index
    several = [gradients_of(attributor, words) for words in LENGTHS]
    expected = [index.encoder.encode_with_share(gradients) for gradients in several]
    torch.cuda.synchronize()

    def encoded(number: int) -> tuple[Tensor, Tensor]:
        found = index.encode_with_share(several[number % len(several)])
        torch.cuda.synchronize()
        return found

    with ThreadPoolExecutor(4) as threads:
        for number, found in enumerate(threads.map(encoded, range(80))):
            same(found, expected[number % len(several)])

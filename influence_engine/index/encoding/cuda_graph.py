"""One query's encoding on a GPU as a CUDA graph: its hundred and more small kernels are launched by one call.

A query of one text is so little work that launching it is what takes the time: on an H200 7 to 10 ms of the 28 to 36 ms
of an explanation. A graph reads from and writes to fixed places, so gradients are copied into buffers whose number of
positions is rounded up. Positions of zeros change no gradient, and a handful of graphs serve texts of every length.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from influence_engine.gradients import LayerGradient
from influence_engine.gradients.factors import DenseGradient, FactoredGradient, IndexedGradient

Encoding = Callable[[Mapping[str, LayerGradient]], tuple[Tensor, Tensor]]
"""Vectors ``[1, k]`` and shares ``[1]`` of one query, as ``Encoder.encode_and_weigh``."""

_POSITIONS = 32
"""Numbers of positions are rounded up to a multiple of this."""

_LOG = logging.getLogger(__name__)


class Buffers:
    """Fixed places for the gradients of one query, with room for more positions than it has.

    Args:
        gradients: Of a batch of one, whose kinds and rounded sizes they take over.
    """

    def __init__(self, gradients: Mapping[str, LayerGradient]) -> None:
        self.gradients = {name: _roomy(gradient) for name, gradient in gradients.items()}
        self._to = [tensor for gradient in self.gradients.values() for tensor in _tensors(gradient)]

    def fill(self, gradients: Mapping[str, LayerGradient]) -> None:
        """Takes up a query of the same ``signature``."""
        tensors = [tensor for gradient in gradients.values() for tensor in _tensors(gradient)]
        places = [to[:, : tensor.shape[1]] for to, tensor in zip(self._to, tensors, strict=True)]
        torch._foreach_zero_(self._to)
        torch._foreach_copy_(places, tensors)


def signature(gradients: Mapping[str, LayerGradient]) -> tuple[object, ...]:
    """What gradients must have in common to share buffers."""
    return tuple(
        (name, type(gradient), *(_roomy_shape(gradient, tensor) for tensor in _tensors(gradient)))
        for name, gradient in gradients.items()
    )


@dataclass(frozen=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    buffers: Buffers
    results: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, encode: Encoding, gradients: Mapping[str, LayerGradient]) -> _Graph:
        buffers = Buffers(gradients)
        buffers.fill(gradients)
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            encode(buffers.gradients)  # what libraries set up when first called cannot be part of a graph
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            results = encode(buffers.gradients)
        return cls(graph, buffers, results)

    def __call__(self, gradients: Mapping[str, LayerGradient]) -> tuple[Tensor, Tensor]:
        self.buffers.fill(gradients)
        self.graph.replay()
        encoded, retained = self.results
        return encoded.clone(), retained.clone()


class GraphedEncoding:
    """Encodes like the function it is given; a single query on a GPU by one launch.

    Args:
        encode: The encoding; launches nothing that depends on numbers on the GPU.
        most: Graphs that are kept at once; the one that was not used for the longest goes first.
    """

    def __init__(self, encode: Encoding, most: int = 32) -> None:
        self._encode = encode
        self._most = most
        self._graphs: OrderedDict[tuple[object, ...], _Graph] = OrderedDict()
        self._lock = threading.Lock()
        self._captures = True

    def __call__(self, gradients: Mapping[str, LayerGradient]) -> tuple[Tensor, Tensor]:
        """``[B, k]`` and ``[B]``, up to the rounding of sums."""
        some = next((_tensors(gradient)[0] for gradient in gradients.values()), None)
        if some is None or some.device.type != "cuda" or len(some) > 1 or not self._captures:
            return self._encode(gradients)
        with self._lock, torch.no_grad():
            key = signature(gradients)
            if key not in self._graphs:
                try:
                    self._graphs[key] = _Graph.of(self._encode, gradients)
                except RuntimeError as error:  # of a driver or device that captures no graphs
                    self._captures = False
                    _LOG.warning("queries are encoded kernel by kernel: no CUDA graph could be made (%s)", error)
                    return self._encode(gradients)
            self._graphs.move_to_end(key)
            if len(self._graphs) > self._most:
                self._graphs.popitem(last=False)
            return self._graphs[key](gradients)


def _tensors(gradient: LayerGradient) -> tuple[Tensor, ...]:
    if isinstance(gradient, FactoredGradient):
        return gradient.left, gradient.right
    return (gradient.rows, gradient.right) if isinstance(gradient, IndexedGradient) else (gradient.matrix,)


def _roomy_shape(gradient: LayerGradient, tensor: Tensor) -> tuple[int, ...]:
    batch, positions, *rest = tensor.shape
    if isinstance(gradient, DenseGradient) or positions == 1:
        return tuple(tensor.shape)
    return (batch, -(-positions // _POSITIONS) * _POSITIONS, *rest)


def _roomy(gradient: LayerGradient) -> LayerGradient:
    room = [tensor.new_zeros(_roomy_shape(gradient, tensor)) for tensor in _tensors(gradient)]
    if isinstance(gradient, FactoredGradient):
        return FactoredGradient(room[0], room[1])
    if isinstance(gradient, IndexedGradient):
        return IndexedGradient(room[0], room[1], gradient.height)  # added positions: row 0, a gradient of zero
    return DenseGradient(room[0])

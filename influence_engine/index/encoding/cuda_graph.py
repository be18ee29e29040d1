"""One query's encoding on a GPU as a CUDA graph: a hundred and more small kernels are launched by one call.

Encoding the gradient of one text is so little work that launching the kernels takes most of the time: on an H200, 7 to
10 ms of the 28 to 36 ms of an explanation. A graph reads from and writes to fixed addresses, so gradients are copied
into buffers whose number of positions is rounded up. Positions of zeros change no gradient, and a handful of graphs
serve inputs of every length.
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
"""Vectors ``[1, k]`` and shares ``[1]`` of one query, as ``Encoder.encode_with_share``."""

_POSITIONS = 32
"""The number of positions is rounded up to a multiple of this."""

_LOG = logging.getLogger(__name__)


class Buffers:
    """Tensors at fixed addresses for the gradients of one query, padded to a rounded number of positions.

    Args:
        gradients: Gradients of a batch of one, which say the buffers' kinds and (before rounding) sizes.
    """

    def __init__(self, gradients: Mapping[str, LayerGradient]) -> None:
        self.gradients = {name: _padded(gradient) for name, gradient in gradients.items()}
        self._to = [tensor for gradient in self.gradients.values() for tensor in _tensors(gradient)]

    def fill(self, gradients: Mapping[str, LayerGradient]) -> None:
        """Copies the gradients of a query with the same ``signature`` into the buffers."""
        tensors = [tensor for gradient in gradients.values() for tensor in _tensors(gradient)]
        places = [to[:, : tensor.shape[1]] for to, tensor in zip(self._to, tensors, strict=True)]
        torch._foreach_zero_(self._to)
        torch._foreach_copy_(places, tensors)


def signature(gradients: Mapping[str, LayerGradient]) -> tuple[object, ...]:
    """The layers, kinds and padded shapes of gradients: those with equal signatures share buffers."""
    return tuple(
        (name, type(gradient), *(_padded_shape(gradient, tensor) for tensor in _tensors(gradient)))
        for name, gradient in gradients.items()
    )


@dataclass(frozen=True)
class _Graph:
    """A captured encoding, with the buffers that it reads and the tensors that it writes."""

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
            encode(buffers.gradients)  # libraries allocate workspace on their first call, which a graph cannot capture
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
    """Encodes like the given function; a single query on a GPU by one launch.

    Args:
        encode: The encoding; its kernels must not depend on values on the GPU.
        max_graphs: Most graphs that are cached; the least recently used one is dropped first.
    """

    def __init__(self, encode: Encoding, max_graphs: int = 32) -> None:
        self._encode = encode
        self._max_graphs = max_graphs
        self._graphs: OrderedDict[tuple[object, ...], _Graph] = OrderedDict()
        self._lock = threading.Lock()
        self._captures = True

    def __call__(self, gradients: Mapping[str, LayerGradient]) -> tuple[Tensor, Tensor]:
        """What the given function returns, ``[B, k]`` and ``[B]``, up to the rounding of sums."""
        some = next((_tensors(gradient)[0] for gradient in gradients.values()), None)
        if some is None or some.device.type != "cuda" or len(some) > 1 or not self._captures:
            return self._encode(gradients)
        with self._lock, torch.no_grad():
            key = signature(gradients)
            if key not in self._graphs:
                try:
                    self._graphs[key] = _Graph.of(self._encode, gradients)
                except RuntimeError as error:  # this driver or device cannot capture graphs
                    self._captures = False
                    _LOG.warning("queries are encoded kernel by kernel: no CUDA graph could be made (%s)", error)
                    return self._encode(gradients)
            self._graphs.move_to_end(key)
            if len(self._graphs) > self._max_graphs:
                self._graphs.popitem(last=False)
            return self._graphs[key](gradients)


def _tensors(gradient: LayerGradient) -> tuple[Tensor, ...]:
    """The tensors that hold a gradient, each with the batch first."""
    if isinstance(gradient, FactoredGradient):
        return gradient.left, gradient.right
    return (gradient.rows, gradient.right) if isinstance(gradient, IndexedGradient) else (gradient.matrix,)


def _padded_shape(gradient: LayerGradient, tensor: Tensor) -> tuple[int, ...]:
    """The tensor's shape with its number of positions rounded up."""
    batch, positions, *rest = tensor.shape
    if isinstance(gradient, DenseGradient) or positions == 1:
        return tuple(tensor.shape)
    return (batch, -(-positions // _POSITIONS) * _POSITIONS, *rest)


def _padded(gradient: LayerGradient) -> LayerGradient:
    """Zeros of the gradient's kind and padded shape."""
    zeros = [tensor.new_zeros(_padded_shape(gradient, tensor)) for tensor in _tensors(gradient)]
    if isinstance(gradient, FactoredGradient):
        return FactoredGradient(zeros[0], zeros[1])
    if isinstance(gradient, IndexedGradient):
        return IndexedGradient(zeros[0], zeros[1], gradient.height)  # added positions: row 0, a gradient of zero
    return DenseGradient(zeros[0])

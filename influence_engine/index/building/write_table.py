"""From the built stages to the files of a version: rotate into the GGN's eigenvectors, whiten, write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from influence_engine.curvature import decomposed
from influence_engine.files import remove_tree
from influence_engine.index.contents import Contents
from influence_engine.index.encoding.encoder import Encoder, LayerCoordinates
from influence_engine.index.store import LARGEST, write_table
from influence_engine.progress import Progress
from influence_engine.tasks import Example

_ROWS = 256
"""Examples that are turned and written at once."""

_COLUMNS = 1024
"""Coordinates of the basis that are turned at once, in double precision."""


@dataclass(frozen=True)
class Stages:
    """Files of the last two stages, a shard each, in the examples' order.

    Attributes:
        gradients: Loss gradients at the final weights, ``vectors [n, k]``.
        responses: Responses of the final weights to the examples' weights, the same; none where no steps are followed.
    """

    gradients: Sequence[Path]
    responses: Sequence[Path] = ()


@dataclass(frozen=True)
class Rotation:
    """From the fitted basis to the GGN's eigenvectors within it.

    Attributes:
        matrix: ``[k, k]``, float64.
        eigenvalues: ``[k]``, largest first.
    """

    matrix: Tensor
    eigenvalues: Tensor

    @classmethod
    def of(cls, ggn: Tensor) -> Rotation:
        """Decomposes the GGN within the basis, ``[k, k]``."""
        eigenvalues, matrix = decomposed(ggn)
        return cls(matrix, eigenvalues)

    def encoder(self, coordinates: LayerCoordinates, basis: Tensor, dtype: torch.dtype) -> Encoder:
        """The finished encoder; its basis is ``[k, m]``, so that a query reads it row by row."""
        rotated = basis.new_empty(basis.shape[1], basis.shape[0], dtype=dtype)
        for to, part in zip(torch.split(rotated, _COLUMNS, 1), torch.split(basis, _COLUMNS), strict=True):
            to.copy_(self.matrix.T @ part.double().T)
        return Encoder(coordinates, rotated, self.eigenvalues.float())


def write_vectors(
    path: Path,
    stages: Stages,
    rotation: Rotation,
    damping: float,
    examples: Sequence[Example],
    *,
    label: str,
    dtype: str,
    contents: Contents,
    progress: Progress,
) -> tuple[str, float]:
    """Writes the example table; returns its content digest and the scale of its vectors.

    A stored vector is ``scale`` times an example's response in the GGN's eigenvectors, where there are responses. Else
    it is ``scale (g in eigenvectors) / sqrt(eigenvalue + damping)``: all its numbers are of one size, and the damped
    inverse is a product with equally whitened queries.
    """
    unrolled = bool(stages.responses)
    turn = rotation.matrix if unrolled else rotation.matrix / (rotation.eigenvalues + damping).sqrt()
    turn = turn.float().cpu()
    shards = stages.responses or stages.gradients
    largest = max(float((_read(shard) @ turn).abs().max()) for shard in shards)
    scale = LARGEST / largest if largest > 0 else 1.0
    weight = 1.0 if unrolled else -1.0 / len(examples)
    remove_tree(path)  # a table left by a build that was killed here

    def blocks() -> Iterator[tuple[Sequence[Example], Tensor, Tensor]]:
        start = 0
        for shard, losses in zip(shards, stages.gradients, strict=True):
            for some, same in zip(torch.split(_read(shard), _ROWS), torch.split(_read(losses), _ROWS), strict=True):
                vectors, gradients = some @ turn, same @ turn
                # By how much an example's own loss is lower for its having been in training.
                own = -weight * (vectors.double() * gradients.double()).sum(1)
                yield examples[start : start + len(vectors)], vectors * scale, own
                start += len(vectors)
            progress("writing the index", start, len(examples))

    content = write_table(
        path, blocks(), label=label, weight=weight, dimensions=turn.shape[1], dtype=dtype, contents=contents
    )
    return content, scale


def _read(path: Path) -> Tensor:
    return load_file(path)["vectors"]

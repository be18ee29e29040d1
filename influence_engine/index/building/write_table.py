"""From the stages' files to the example table: rotates the vectors into the GGN's eigenvectors, whitens and writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from influence_engine.curvature import decomposed
from influence_engine.files import remove_tree
from influence_engine.index.building.context import BuildContext
from influence_engine.index.encoding.encoder import Encoder, LayerCoordinates
from influence_engine.index.store import LARGEST, write_table
from influence_engine.tasks import Example, group_of, kept

_ROWS = 256
"""Examples that are rotated and written at once."""

_COLUMNS = 1024
"""Coordinates of the basis that are rotated at once."""


@dataclass(frozen=True)
class StageFiles:
    """Files of the last two stages, each a shard ``vectors [n, k]``, in the examples' order.

    Attributes:
        gradients: Loss gradients at the final weights.
        sensitivities: ``d theta / d w`` of the examples; none where the approximation is ``final``.
    """

    gradients: Sequence[Path]
    sensitivities: Sequence[Path] = ()


@dataclass(frozen=True)
class Rotation:
    """The GGN's eigendecomposition within the fitted basis.

    Attributes:
        matrix: Eigenvectors in columns, ``[k, k]``, float64.
        eigenvalues: ``[k]``, largest first.
    """

    matrix: Tensor
    eigenvalues: Tensor

    @classmethod
    def of(cls, ggn: Tensor) -> Rotation:
        """Decomposes the GGN within the fitted basis, ``[k, k]``."""
        eigenvalues, matrix = decomposed(ggn)
        return cls(matrix, eigenvalues)

    def encoder(self, coordinates: LayerCoordinates, basis: Tensor, dtype: torch.dtype) -> Encoder:
        """The finished encoder; its basis is ``[k, m]``, so that encoding a query reads it row by row."""
        rotated, rotation = basis.new_empty(basis.shape[1], basis.shape[0], dtype=dtype), self.matrix.T.to(basis)
        for to, part in zip(torch.split(rotated, _COLUMNS, 1), torch.split(basis, _COLUMNS), strict=True):
            to.copy_(rotation @ part.T)
        return Encoder(coordinates, rotated, self.eigenvalues.float())


def write_vectors(
    context: BuildContext, path: Path, stages: StageFiles, rotation: Rotation, damping: float
) -> tuple[str, float]:
    """Writes the example table; returns its content digest and the scale of its vectors.

    Where there are sensitivities, a stored vector is ``scale`` times an example's ``d theta / d w`` in the GGN's
    eigenvectors. Else it is ``scale g (Lambda + lambda)^-1/2`` with the gradient ``g`` in these eigenvectors and their
    eigenvalues ``Lambda``: whitened so, all numbers are of one size, and ``phi^T (G + lambda)^-1 g`` is an inner
    product with an equally whitened query.

    Args:
        context: The build.
        path: The table to make.
        stages: Files of the stages.
        rotation: Into the GGN's eigenvectors.
        damping: ``lambda``; not used where there are sensitivities.
    """
    examples, unrolled = context.examples, bool(stages.sensitivities)
    matrix = rotation.matrix if unrolled else rotation.matrix / (rotation.eigenvalues + damping).sqrt()
    matrix = matrix.float().cpu()
    shards = stages.sensitivities or stages.gradients
    largest = max(float((_read(shard) @ matrix).abs().max()) for shard in shards)
    scale = LARGEST / largest if largest > 0 else 1.0
    weight = 1.0 if unrolled else -1.0 / len(examples)
    remove_tree(path)  # a table left by a build that was killed here

    stores = context.settings.store_examples != "none"
    keep = partial(kept, context.passes.task) if stores else _as_it_is

    def blocks() -> Iterator[tuple[Sequence[Example], Tensor, Tensor]]:
        start = 0
        for shard, losses in zip(shards, stages.gradients, strict=True):
            for some, same in zip(torch.split(_read(shard), _ROWS), torch.split(_read(losses), _ROWS), strict=True):
                vectors, gradients = some @ matrix, same @ matrix
                # Self-influence: how much lower an example's own loss is because the example was in training.
                own = -weight * (vectors.double() * gradients.double()).sum(1)
                some_examples = examples[start : start + len(vectors)]
                yield [*map(keep, some_examples)], vectors * scale, own
                start += len(vectors)
            context.progress("writing the index", start, len(examples))

    content = write_table(
        path,
        blocks(),
        group=partial(group_of, context.passes.task),
        weight=weight,
        dimensions=matrix.shape[1],
        dtype=context.settings.dtype,
        contents=context.contents,
    )
    return content, scale


def _as_it_is(example: Example) -> Example:
    return example


def _read(path: Path) -> Tensor:
    return load_file(path)["vectors"]

"""Turns layer gradients into the index's vectors: metric, layer bases, eigenbasis.

An :class:`Encoder` is all that a query needs besides the vectors themselves; it is built once with the index and saved
in one safetensors file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from influence_engine.curvature import LayerMetric
from influence_engine.errors import IndexFormatError
from influence_engine.gradients import LayerGradient
from influence_engine.gradients.coordinates import LayerProjection
from influence_engine.index.encoding.mkldnn_packing import packed, product
from influence_engine.tensor_files import write_tensors


@dataclass(frozen=True)
class LayerCoordinates:
    """Coordinates of the layers' gradients in the optimiser's metric, ``m`` in all.

    Attributes:
        metric: By layer name.
        projections: By layer name, in the metric's own coordinates.
    """

    metric: Mapping[str, LayerMetric]
    projections: Mapping[str, LayerProjection]

    @property
    def size(self) -> int:
        """``m``."""
        return sum(projection.size for projection in self.projections.values())

    def places(self) -> dict[str, slice]:
        """Where each layer's coordinates are among all ``m``."""
        found, start = {}, 0
        for name, projection in self.projections.items():
            found[name] = slice(start, start + projection.size)
            start += projection.size
        return found

    def displacements(self, name: str, part: Tensor) -> Tensor:
        """Weights of a layer that are displaced along its coordinates: ``[q, d0, d1]`` of ``part [r0 r1, q]``."""
        projection, metric = self.projections[name], self.metric[name]
        inner = part.T.reshape(part.shape[1], projection.left.shape[-1], projection.right.shape[1])
        return projection.spread(inner, len(metric.row)) * (metric.row.unsqueeze(1) * metric.column)

    def seen(self, name: str, matrices: Tensor) -> Tensor:
        """Coordinates ``[q, r0 r1]`` of a layer's matrices ``[q, d0, d1]``, which are in the metric already."""
        return self.projections[name].seen(matrices).flatten(1)

    def seen_together(self, matrices: Mapping[str, Tensor]) -> Tensor:
        """Coordinates ``[q, m]`` of all layers' matrices, as ``seen`` takes them."""
        return self._joined({name: self.seen(name, each) for name, each in matrices.items()})

    def __call__(self, gradients: Mapping[str, LayerGradient]) -> Tensor:
        """Coordinates ``[B, m]``; a layer that took no part in the forward pass has zeros."""
        # Layer by layer: scaled gradients of all layers at once would be as large as what the passes keep.
        return self._joined(
            {name: self.projections[name].project(self.metric[name].scale(one)) for name, one in gradients.items()}
        )

    def scale(self, gradients: Mapping[str, LayerGradient]) -> dict[str, LayerGradient]:
        """The gradients in the metric's own coordinates."""
        return {name: self.metric[name].scale(gradient) for name, gradient in gradients.items()}

    def project(self, scaled: Mapping[str, LayerGradient]) -> Tensor:
        """Coordinates ``[B, m]`` of gradients that have been scaled."""
        return self._joined({name: self.projections[name].project(gradient) for name, gradient in scaled.items()})

    def project_weighed(
        self, gradients: Mapping[str, LayerGradient], kinds: Sequence[Mapping[str, Tensor]]
    ) -> list[Tensor]:
        """Coordinates ``[B, m]`` of gradients times the layers' matrices of each kind, number by number."""
        by_layer = {
            name: self.projections[name].project_weighed(gradient, [kind[name] for kind in kinds])
            for name, gradient in gradients.items()
        }
        return [self._joined({name: one[number] for name, one in by_layer.items()}) for number in range(len(kinds))]

    def _joined(self, parts: Mapping[str, Tensor]) -> Tensor:
        if not parts:
            raise IndexFormatError("none of the index's layers took part in the forward pass")
        some = next(iter(parts.values()))
        return torch.cat(
            [
                parts[name] if name in parts else some.new_zeros(len(some), projection.size)
                for name, projection in self.projections.items()
            ],
            1,
        )

    def to(self, device: torch.device) -> LayerCoordinates:
        """The same on a device."""
        return LayerCoordinates(
            {n: m.to(device) for n, m in self.metric.items()},
            {n: LayerProjection(p.left.to(device), p.right.to(device)) for n, p in self.projections.items()},
        )

    def save(self, path: str | os.PathLike[str], more: Mapping[str, Tensor] | None = None) -> None:
        """Writes it, and tensors ``more``, as one safetensors file."""
        tensors = dict(more or {})
        for number, name in enumerate(self.projections):
            tensors[f"layer.{number}.row"] = self.metric[name].row
            tensors[f"layer.{number}.column"] = self.metric[name].column
            tensors[f"layer.{number}.left"] = self.projections[name].left
            tensors[f"layer.{number}.right"] = self.projections[name].right
        names = json.dumps(list(self.projections))
        write_tensors(path, tensors, {"layers": names})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> tuple[LayerCoordinates, dict[str, Tensor]]:
        """Reads what ``save`` wrote: the coordinates and the further tensors."""
        try:
            with safe_open(Path(path), "pt") as file:
                names = json.loads(file.metadata()["layers"])
                # Copies: one tensor that is a page of the file would keep all of the file in memory.
                tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (no mapping)
        except Exception as error:
            raise IndexFormatError(f"{path} cannot be read: {error}", field=str(path)) from error
        metric, projections = {}, {}
        for number, name in enumerate(names):
            row, column, left, right = (
                tensors.pop(f"layer.{number}.{part}") for part in ("row", "column", "left", "right")
            )
            metric[name] = LayerMetric(row, column)
            projections[name] = LayerProjection(left, right)
        return cls(metric, projections), tensors


@dataclass(frozen=True)
class Encoder:
    """From layer gradients to the ``k`` coordinates in which the GGN is diagonal.

    Attributes:
        coordinates: The layers' coordinates, ``m``.
        basis: ``[k, m]``.
        eigenvalues: ``[k]``, of the GGN in the optimiser's metric.
    """

    coordinates: LayerCoordinates
    basis: Tensor
    eigenvalues: Tensor

    def encode(self, gradients: Mapping[str, LayerGradient]) -> Tensor:
        """``[B, k]`` in single precision."""
        return self.rotate(self.coordinates(gradients))

    def encode_and_weigh(self, gradients: Mapping[str, LayerGradient]) -> tuple[Tensor, Tensor]:
        """``encode``, and the share of each gradient's squared norm that its ``k`` coordinates keep, ``[B]``."""
        return self.encode_and_weigh_scaled(self.coordinates.scale(gradients))

    def encode_and_weigh_scaled(self, scaled: Mapping[str, LayerGradient]) -> tuple[Tensor, Tensor]:
        """The same of gradients that are in the metric already."""
        encoded = self.rotate(self.coordinates.project(scaled))
        whole = torch.stack([gradient.squared_norms() for gradient in scaled.values()]).sum(0)
        return encoded, encoded.pow(2).sum(1) / whole.clamp_min(1e-30)

    def rotate(self, coordinates: Tensor) -> Tensor:
        """``[B, k]`` of coordinates ``[B, m]``."""
        return product(coordinates, self.basis).float()

    def packed(self) -> Encoder:
        """The same, for encoding only: the basis laid out as this processor reads it fastest."""
        return replace(self, basis=packed(self.basis))

    def to(self, device: torch.device) -> Encoder:
        """The same on a device."""
        return replace(
            self,
            coordinates=self.coordinates.to(device),
            basis=self.basis.to(device),
            eigenvalues=self.eigenvalues.to(device),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it as one safetensors file."""
        self.coordinates.save(path, {"basis": self.basis, "eigenvalues": self.eigenvalues})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Encoder:
        """Reads what ``save`` wrote."""
        coordinates, more = LayerCoordinates.load(path)
        try:
            return cls(coordinates, more["basis"], more["eigenvalues"])
        except KeyError as error:
            raise IndexFormatError(f"{path} has no tensor {error}", field=str(path)) from error

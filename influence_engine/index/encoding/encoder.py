"""Turns layer gradients into the index's vectors: preconditioner, layer bases, eigenbasis of the GGN.

``encoded = B [p0_l^T (D_l^-1/2 g_l) p1_l]_l``: each layer ``l`` has its gradient preconditioned
(``curvature.preconditioner``) and projected on two bases (``gradients.coordinates``), ``m`` coordinates in all, which
are projected on the ``k`` leading eigenvectors ``B [k, m]`` of the GGN (``curvature.eigenbasis``). An :class:`Encoder`
is all that a query needs besides the index's vectors; it is built once with the index, and saved in one safetensors
file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from influence_engine.curvature import LayerPreconditioner, Preconditioner
from influence_engine.errors import IndexFormatError
from influence_engine.gradients import LayerGradient
from influence_engine.gradients.coordinates import LayerProjection
from influence_engine.index.encoding.mkldnn_packing import packed, product
from influence_engine.tensor_files import write_tensors


@dataclass(frozen=True)
class LayerCoordinates:
    """Coordinates of the layers' preconditioned gradients, ``m`` in all.

    Attributes:
        preconditioner: ``D^-1/2``, by layer name.
        projections: The two bases, of preconditioned gradients, by layer name.
    """

    preconditioner: Preconditioner
    projections: Mapping[str, LayerProjection]

    @property
    def size(self) -> int:
        """``m``."""
        return sum(projection.size for projection in self.projections.values())

    def slices(self) -> dict[str, slice]:
        """Each layer's coordinates among all ``m``."""
        found, start = {}, 0
        for name, projection in self.projections.items():
            found[name] = slice(start, start + projection.size)
            start += projection.size
        return found

    def displacements(self, name: str, coordinates: Tensor) -> Tensor:
        """Displacements ``D^-1/2 p0 C p1^T [q, d0, d1]`` of a layer's weights along its ``coordinates [r0 r1, q]``.

        A displacement that is ``x`` in preconditioned coordinates is ``D^-1/2 x`` in the weights themselves.
        """
        projection, preconditioner = self.projections[name], self.preconditioner[name]
        inner = coordinates.T.reshape(coordinates.shape[1], projection.left.shape[-1], projection.right.shape[1])
        return projection.lift(inner, len(preconditioner.row)) * preconditioner.matrix()

    def project_matrices(self, name: str, matrices: Tensor) -> Tensor:
        """Coordinates ``[q, r0 r1]`` of a layer's dense matrices ``[q, d0, d1]``, which are preconditioned already."""
        return self.projections[name].project_matrices(matrices).flatten(1)

    def project_all_matrices(self, matrices: Mapping[str, Tensor]) -> Tensor:
        """Coordinates ``[q, m]`` of dense preconditioned matrices ``[q, d0, d1]``, by layer name."""
        return self._joined({name: self.project_matrices(name, each) for name, each in matrices.items()})

    def __call__(self, gradients: Mapping[str, LayerGradient]) -> Tensor:
        """Coordinates ``[B, m]`` of gradients; zeros for a layer that took no part in the forward pass."""
        # Layer by layer: preconditioned gradients of all layers at once would take as much memory as the pass itself.
        return self._joined(
            {
                name: self.projections[name].project(self.preconditioner[name].apply(one))
                for name, one in gradients.items()
            }
        )

    def precondition(self, gradients: Mapping[str, LayerGradient]) -> dict[str, LayerGradient]:
        """``D^-1/2 g`` by layer name."""
        return {name: self.preconditioner[name].apply(gradient) for name, gradient in gradients.items()}

    def project(self, preconditioned: Mapping[str, LayerGradient]) -> Tensor:
        """Coordinates ``[B, m]`` of gradients that are preconditioned already."""
        return self._joined(
            {name: self.projections[name].project(gradient) for name, gradient in preconditioned.items()}
        )

    def project_hadamard(
        self, gradients: Mapping[str, LayerGradient], factors: Sequence[Mapping[str, Tensor]]
    ) -> list[Tensor]:
        """Coordinates ``[B, m]`` of Hadamard (elementwise) products of gradients and matrices, one for each factor.

        Args:
            gradients: By layer name.
            factors: Matrices ``[d0, d1]`` by layer name.
        """
        by_layer = {
            name: self.projections[name].project_hadamard(gradient, [factor[name] for factor in factors])
            for name, gradient in gradients.items()
        }
        return [self._joined({name: one[number] for name, one in by_layer.items()}) for number in range(len(factors))]

    def _joined(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The layers' coordinates side by side, ``[B, m]``, with zeros for missing layers."""
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
        """A copy on a device."""
        return LayerCoordinates(
            {n: one.to(device) for n, one in self.preconditioner.items()},
            {n: LayerProjection(p.left.to(device), p.right.to(device)) for n, p in self.projections.items()},
        )

    def save(self, path: str | os.PathLike[str], more: Mapping[str, Tensor] | None = None) -> None:
        """Writes the coordinates, and tensors ``more``, as one safetensors file."""
        tensors = dict(more or {})
        for number, name in enumerate(self.projections):
            tensors[f"layer.{number}.row"] = self.preconditioner[name].row
            tensors[f"layer.{number}.column"] = self.preconditioner[name].column
            tensors[f"layer.{number}.left"] = self.projections[name].left
            tensors[f"layer.{number}.right"] = self.projections[name].right
        names = json.dumps(list(self.projections))
        write_tensors(path, tensors, {"layers": names})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> tuple[LayerCoordinates, dict[str, Tensor]]:
        """Reads a file that ``save`` wrote: the coordinates, and the further tensors.

        Raises:
            IndexFormatError: it cannot be read.
        """
        try:
            with safe_open(Path(path), "pt") as file:
                names = json.loads(file.metadata()["layers"])
                # Copies: one tensor that is a page of the file would keep all of the file in memory.
                tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (no mapping)
        except Exception as error:
            raise IndexFormatError(f"{path} cannot be read: {error}", field=str(path)) from error
        preconditioner, projections = {}, {}
        for number, name in enumerate(names):
            row, column, left, right = (
                tensors.pop(f"layer.{number}.{part}") for part in ("row", "column", "left", "right")
            )
            preconditioner[name] = LayerPreconditioner(row, column)
            projections[name] = LayerProjection(left, right)
        return cls(preconditioner, projections), tensors


@dataclass(frozen=True)
class Encoder:
    """From layer gradients to the ``k`` coordinates in which the GGN is diagonal.

    Attributes:
        coordinates: The layers' ``m`` coordinates.
        basis: ``[k, m]``, the eigenvectors of the preconditioned GGN ``D^-1/2 G D^-1/2`` in these coordinates.
        eigenvalues: ``[k]``, their eigenvalues.
    """

    coordinates: LayerCoordinates
    basis: Tensor
    eigenvalues: Tensor

    def encode(self, gradients: Mapping[str, LayerGradient]) -> Tensor:
        """The gradients' ``k`` coordinates, ``[B, k]``, in single precision."""
        return self.rotate(self.coordinates(gradients))

    def encode_with_share(self, gradients: Mapping[str, LayerGradient]) -> tuple[Tensor, Tensor]:
        """``encode``, and the share of each preconditioned gradient's squared norm in the ``k`` numbers, ``[B]``."""
        return self.encode_preconditioned(self.coordinates.precondition(gradients))

    def encode_preconditioned(self, preconditioned: Mapping[str, LayerGradient]) -> tuple[Tensor, Tensor]:
        """``encode_with_share`` of gradients that are preconditioned already."""
        encoded = self.rotate(self.coordinates.project(preconditioned))
        whole = torch.stack([gradient.squared_norms() for gradient in preconditioned.values()]).sum(0)
        return encoded, encoded.pow(2).sum(1) / whole.clamp_min(1e-30)

    def rotate(self, coordinates: Tensor) -> Tensor:
        """Coordinates ``[B, m]`` in the eigenvectors of the GGN: ``[B, k]``."""
        return product(coordinates, self.basis).float()

    @cached_property
    def plain_basis(self) -> Tensor:
        """``[k, m]``, laid out row by row, for products from its other side; beside a packed one it is a copy."""
        return self.basis.to_dense() if self.basis.is_mkldnn else self.basis

    def packed(self) -> Encoder:
        """A copy for encoding only, with the basis laid out as this processor multiplies by it fastest."""
        return replace(self, basis=packed(self.basis))

    def to(self, device: torch.device) -> Encoder:
        """A copy on a device."""
        return replace(
            self,
            coordinates=self.coordinates.to(device),
            basis=self.basis.to(device),
            eigenvalues=self.eigenvalues.to(device),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the encoder as one safetensors file."""
        self.coordinates.save(path, {"basis": self.basis, "eigenvalues": self.eigenvalues})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Encoder:
        """Reads a file that ``save`` wrote.

        Raises:
            IndexFormatError: it cannot be read, or a tensor is missing.
        """
        coordinates, more = LayerCoordinates.load(path)
        try:
            return cls(coordinates, more["basis"], more["eigenvalues"])
        except KeyError as error:
            raise IndexFormatError(f"{path} has no tensor {error}", field=str(path)) from error

"""The replay basis: a few directions whose influence has been replayed exactly, and which correct every estimate.

This project's own derivation: influences are linear in the gradient of the measurement, so that exact rows for a few
directions in parameter space give exact influences for their whole span. Directions are combinations of held-out
measurements' gradients, chosen by how much *influence* they carry: with the estimated influences of the held-out
inputs ``B = U S W^T`` (singular value decomposition), direction ``j`` is ``sum_v U_vj / S_j grad f_v`` and its
estimated row is ``W_j``. Its exact row is replayed once (Ilyas and Engstrom 2025). A query's estimate ``b`` is split
into the part in the span of the estimated rows, which is replaced by the same combination of the exact rows, and the
rest, which is scaled.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from influence_engine.digests import weights_digest
from influence_engine.errors import DigestMismatchError, IndexFormatError, SettingsError
from influence_engine.tensor_files import write_tensors

FEWEST_DIRECTIONS = 8
"""Fewest directions of a basis: with fewer exact rows, most of an answer would still be estimated."""

SCALE_GRID = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
"""Candidates for ``rho``, in units of the mean square of an example's estimated rows."""


@dataclass(frozen=True)
class ReplayBasis:
    """``K`` replayed directions.

    Attributes:
        exact: ``[K, N]``, replayed influences of the directions, in the order of the index.
        estimated: ``[K, N]``, orthonormal: the estimated influences of the same directions.
        scale: ``[N]``, the factor of the part of an estimate outside the basis.
        damping: ``lambda`` with which the estimated rows agree best with the replayed ones.
        agreement: Mean cosine of replayed and estimated rows before they were made orthonormal.
        digest: Digest of the tensors; empty before the basis has been saved and loaded.
    """

    exact: Tensor
    estimated: Tensor
    scale: Tensor
    damping: float
    agreement: float
    digest: str = ""

    @property
    def width(self) -> int:
        """``K``."""
        return self.exact.shape[0]

    def coefficients(self, estimates: Tensor) -> Tensor:
        """Coefficients ``[Q, K]`` of estimates ``[Q, N]`` (with the basis' damping) in the estimated rows."""
        return estimates @ self.estimated.T

    def correct(self, estimates: Tensor, coefficients: Tensor, rows: Tensor | None = None) -> Tensor:
        """Influences of the replayed tier, ``c M + kappa (b - c M~)`` of estimates ``b`` and coefficients ``c``.

        Args:
            estimates: ``[Q, n]``, of all examples or of ``rows``.
            coefficients: ``[Q, K]``, of the estimates of all examples.
            rows: ``[n]``, rows of the examples that ``estimates`` has; all if left out.
        """
        exact, estimated, scale = (
            one if rows is None else one[..., rows] for one in (self.exact, self.estimated, self.scale)
        )
        return coefficients @ exact + scale * (estimates - coefficients @ estimated)

    @staticmethod
    def share(estimates: Tensor, coefficients: Tensor) -> Tensor:
        """Share of each query's squared estimates that lies inside the basis, ``[Q]``."""
        share = coefficients.pow(2).sum(-1) / estimates.pow(2).sum(-1).clamp_min(1e-30)
        return share.clamp_max(1.0)  # rounding can exceed one

    def to(self, device: torch.device) -> ReplayBasis:
        """A copy on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("exact", "estimated", "scale")}
        return replace(self, **moved)

    def save(self, path: str | os.PathLike[str], about: Mapping[str, str]) -> None:
        """Writes the basis as one safetensors file; ``about`` holds the digests of the index that it belongs to."""
        tensors = {name: getattr(self, name).cpu().contiguous() for name in ("exact", "estimated", "scale")}
        numbers = {"damping": repr(self.damping), "agreement": repr(self.agreement)}
        facts = {**about, **numbers, "digest": weights_digest(tensors)}
        write_tensors(path, tensors, facts)

    @classmethod
    def load(cls, path: str | os.PathLike[str], about: Mapping[str, str]) -> ReplayBasis | None:
        """Reads a file that ``save`` wrote; ``None`` where there is none, or one of another index.

        Raises:
            IndexFormatError: the file cannot be read.
            DigestMismatchError: its tensors have changed.
        """
        if not Path(path).is_file():
            return None
        try:
            with safe_open(Path(path), "pt") as file:
                facts = file.metadata()
                tensors = {name: file.get_tensor(name) for name in ("exact", "estimated", "scale")}
        except Exception as error:
            raise IndexFormatError(f"{path} cannot be read: {error}", field=str(path)) from error
        if any(facts.get(name) != value for name, value in about.items()):
            return None
        if weights_digest(tensors) != facts["digest"]:
            raise DigestMismatchError(f"{path} has changed since it was written; make it again", field=str(path))
        return cls(
            **tensors, damping=float(facts["damping"]), agreement=float(facts["agreement"]), digest=facts["digest"]
        )


def choose_directions(estimates: Tensor, width: int) -> Tensor:
    """The directions with the most influence: coefficients ``[K, V]`` of the held-out measurements' gradients.

    Args:
        estimates: ``[V, N]``, estimated influences of ``V`` held-out inputs.
        width: ``K``.

    Raises:
        SettingsError: the held-out inputs span fewer directions.
    """
    left, singular, _ = torch.linalg.svd(estimates.double(), full_matrices=False)
    usable = int((singular > 1e-6 * singular[0]).sum())
    if not 1 <= width <= usable:
        raise SettingsError(
            f"{width} directions were asked for; the {len(estimates)} held-out inputs span {usable}. Give more of "
            "them, or ask for fewer",
            field="directions",
        )
    return (left[:, :width] / singular[:width]).T.float()


def fit_basis(exact: Tensor, candidates: Mapping[float, Tensor]) -> ReplayBasis:
    """A basis from replayed rows, with the damping whose estimated rows agree best with the replayed ones.

    Args:
        exact: ``[K, N]``, the directions' replayed rows.
        candidates: The same directions' estimated rows ``[K, N]``, by damping.
    """
    agreement = {
        damping: float(torch.cosine_similarity(exact.double(), rows.double(), dim=1).mean())
        for damping, rows in candidates.items()
    }
    best = max(agreement, key=lambda damping: agreement[damping])
    # rows = R^T Q: in the orthonormal rows Q the exact ones become R^-T exact.
    orthonormal, upper = torch.linalg.qr(candidates[best].double().T)
    turned = torch.linalg.solve_triangular(upper.T, exact.double(), upper=False)
    estimated = orthonormal.T.contiguous()
    scale = outside_scale(turned, estimated)
    return ReplayBasis(turned.float(), estimated.float(), scale.float(), best, agreement[best])


def outside_scale(exact: Tensor, estimated: Tensor) -> Tensor:
    """The factor of an estimate outside the basis, by example, ``[N]``.

    ``kappa_i = (sum_j M_ji m_ji + rho kappa) / (sum_j m_ji^2 + rho)`` with exact rows ``M`` and estimated rows ``m``: a
    ridge regression of an example's exact numbers on its estimated ones, shrunk to the common
    ``kappa = <M, m> / <m, m>``; ``rho`` by leave-one-out cross-validation over the directions.
    """
    exact, estimated = exact.double(), estimated.double()
    products, squares = exact * estimated, estimated.pow(2)
    common = products.sum() / squares.sum().clamp_min(1e-30)
    unit = squares.sum(0).mean()

    def fitted(p: Tensor, s: Tensor, rho: float) -> Tensor:
        weight = max(rho, 1e-12) * unit
        return (p + weight * common) / (s + weight)

    def error(rho: float) -> float:
        left_out = fitted(products.sum(0) - products, squares.sum(0) - squares, rho)
        return float((exact - left_out * estimated).pow(2).sum())

    rho = min(SCALE_GRID, key=error) if len(exact) > 1 else SCALE_GRID[-1]
    # An example's few numbers may disagree in sign by chance; a negative factor would reverse its estimates' sign.
    return fitted(products.sum(0), squares.sum(0), rho).clamp_min(0.0)

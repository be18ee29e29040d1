"""Packs a large bfloat16 matrix in oneDNN's layout (MKL-DNN in torch); on the CPU a product with it is a third cheaper.

The two operators are those that torch's own compiler emits for a linear layer with constant weights. They are not part
of torch's documented interface, so their result is compared with the plain product once, and where the operators are
missing or differ the matrix is returned unpacked.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_TOLERANCE = 2.0**-6
"""Allowed difference as a share of the largest entry of a product: bfloat16 has seven bits after the first."""


def packed(matrix: Tensor) -> Tensor:
    """The matrix ``[k, m]``, in oneDNN's opaque layout where that is available; for use with ``product`` only."""
    if matrix.dtype != torch.bfloat16 or matrix.device.type != "cpu":
        return matrix
    probe = torch.linspace(-1, 1, matrix.shape[1], dtype=matrix.dtype).unsqueeze(0)
    try:
        candidate: Tensor = torch.ops.mkldnn._reorder_linear_weight(matrix, 1)
        found, expected = product(probe, candidate), product(probe, matrix)
    except (AttributeError, RuntimeError):
        return matrix
    agrees = (found - expected).abs().max() <= _TOLERANCE * expected.abs().max()
    return candidate if bool(agrees) else matrix


def product(rows: Tensor, matrix: Tensor) -> Tensor:
    """``rows [B, m]`` times the transpose of ``matrix [k, m]``, packed or not: ``[B, k]`` in the matrix' precision."""
    rows = rows.to(matrix.dtype)
    if matrix.is_mkldnn:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, matrix, None, "none", [], "")
        return result
    return functional.linear(rows, matrix)

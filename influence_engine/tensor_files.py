"""Tensors in safetensors files, written atomically."""

from __future__ import annotations

import os
from collections.abc import Mapping

from safetensors.torch import save_file
from torch import Tensor

from influence_engine.files import atomic_write


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors, from whatever device, to one safetensors file, whole or not at all."""
    with atomic_write(path) as temporary:
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(on_cpu, temporary, None if metadata is None else dict(metadata))

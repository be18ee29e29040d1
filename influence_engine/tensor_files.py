"""Tensors in safetensors files that are either whole or absent."""

from __future__ import annotations

import os
from collections.abc import Mapping

from safetensors.torch import save_file
from torch import Tensor

from influence_engine.files import writing_aside


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors, from whatever device, as one file, whole or not at all."""
    with writing_aside(path) as aside:
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(kept, aside, None if metadata is None else dict(metadata))

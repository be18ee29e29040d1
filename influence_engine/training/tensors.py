"""Tensors on disk, in the safetensors format.

Checkpoints are written while training waits. The format's own library fills a file through a mapping and takes about
five times as long as writing the bytes in one go, which for a full fine-tuning is the larger part of what recording
costs; so the bytes are laid out here (https://github.com/huggingface/safetensors, "Format"). Reading is the library's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from influence_engine.errors import RecordError
from influence_engine.files import writing_aside

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes the tensors to one file, whole or not at all.

    Raises:
        KeyError: a tensor has a dtype that records do not use.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header: dict[str, object] = {}
    offset = 0
    for name, tensor in plain.items():
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with writing_aside(path) as aside, aside.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for tensor in plain.values():
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file.

    Raises:
        RecordError: it is missing or damaged.
    """
    if not path.is_file():
        raise RecordError(f"{path} is missing", field=str(path))
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except SafetensorError as error:
        raise RecordError(f"{path} is damaged: {error}", field=str(path)) from error

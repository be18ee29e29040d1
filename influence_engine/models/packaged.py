"""Base models that come inside packages, in a form that ``load_base`` reads: what is none is converted once.

Weights in Python's own format are read as tensors only (``weights_only``), and written as safetensors with the config
and the image processor that belong to them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from influence_engine.demo_assets.packages import (
    EFFICIENTNET_LITE0,
    MODELS,
    packaged_model,
    packages_folder,
)
from influence_engine.digests import folder_digests, verify_folder
from influence_engine.errors import DigestMismatchError, ModelError, RecordError
from influence_engine.files import read_json, remove_tree, write_json
from influence_engine.progress import Progress, silent

MANIFEST = "converted.json"

CONVERSION = 1
"""Raised whenever a converter comes to write something else."""


def packaged_base(name: str, *, folder: str | os.PathLike[str] | None = None, progress: Progress = silent) -> Path:
    """The folder of a packaged model; fetched, and converted, if it is not there yet.

    Args:
        name: The package, one of ``demo_assets.packages.MODELS``.
        folder: Where packages are kept; by default ``packages_folder()``.
        progress: Told what is fetched.

    Raises:
        DataError: no such package is known, or it cannot be fetched.
        ModelError: its weights are not those of the model that it is named for.
    """
    folder = Path(folder) if folder is not None else packages_folder()
    found = packaged_model(name, folder=folder, progress=progress)
    convert = CONVERTERS.get(name)
    if convert is None:
        return found
    package = MODELS[name][0]
    made = folder / f"{package.name}-{package.version}-safetensors"
    said = {"package": package.requirement, "sha256": package.sha256, "conversion": CONVERSION}
    if not _is_whole(made, said):
        fresh = Path(tempfile.mkdtemp(dir=folder, prefix=f".{made.name}."))
        try:
            convert(found, fresh)
            fresh.chmod(0o755)
            write_json(fresh / MANIFEST, {**said, "files": folder_digests(fresh)})
            remove_tree(made)
            os.rename(fresh, made)
        finally:
            remove_tree(fresh)
    return made


def _is_whole(made: Path, said: Mapping[str, Any]) -> bool:
    try:
        manifest = read_json(made / MANIFEST)
        if any(manifest.get(key) != value for key, value in said.items()):
            return False
        verify_folder(made, manifest["files"])
    except (RecordError, DigestMismatchError, KeyError, TypeError, AttributeError):
        return False
    return True


def _convert_lite0(weights: Path, into: Path) -> None:
    """EfficientNet-Lite0 without its classifier of a thousand things, and the preprocessing of its training."""
    import torch

    from influence_engine.models.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel
    from influence_engine.models.loading import save_model
    from influence_engine.tasks import PictureProcessor

    loaded = torch.load(weights, map_location="cpu", weights_only=True)
    model = EfficientNetLiteModel(EfficientNetLiteConfig()).eval()
    tensors = {new: loaded[old] for old, new in lite0_names(loaded).items()}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelError(f"{weights} is not EfficientNet-Lite0: {error}", field=str(weights)) from error
    # As in TensorFlow: (pixel - 127) / 128.
    processor = PictureProcessor(size=(224, 224), mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    save_model(model, into, processor=processor)


def lite0_names(loaded: Mapping[str, Any]) -> dict[str, str]:
    """What the original's tensors are called here; those of its classifier are left out."""
    names = {}
    for old in loaded:
        head, _, rest = old.partition(".")
        if head in _OUTER:
            names[old] = f"{_OUTER[head]}.{rest}"
        elif head == "_blocks":
            number, inner, leaf = rest.split(".", 2)
            names[old] = f"blocks.{number}.{_inner(int(number), inner)}.{leaf}"
    return names


_OUTER = {"_conv_stem": "stem.1", "_bn0": "stem.2", "_conv_head": "top.0", "_bn1": "top.1"}

_STRIDED = (1, 3, 5, 11)
"""Blocks of Lite0 that halve the sides: their depthwise convolution has a padding of its own before it."""


def _inner(number: int, name: str) -> str:
    padded = number in _STRIDED
    return {
        "_expand_conv": "expand.0",
        "_bn0": "expand.1",
        "_depthwise_conv": f"depthwise.{int(padded)}",
        "_bn1": f"depthwise.{1 + padded}",
        "_project_conv": "project.0",
        "_bn2": "project.1",
    }[name]


CONVERTERS: dict[str, Callable[[Path, Path], None]] = {EFFICIENTNET_LITE0.name: _convert_lite0}
"""What is no folder that ``load_base`` reads, by its package."""

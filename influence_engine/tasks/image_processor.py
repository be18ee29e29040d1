"""How a picture becomes what an image model reads: resized, cropped, scaled and normalised, by Pillow and numpy alone.

The settings are those of ``preprocessor_config.json``, which every image model of ``transformers`` has beside it; what
they ask for and this file does not do is refused.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from influence_engine.errors import ModelError, SettingsError
from influence_engine.files import write_json
from influence_engine.tasks.pictures import Pixels

FILE = "preprocessor_config.json"
NAME = "PictureProcessor"

_BICUBIC = 3
_CROPS = ("ConvNext",)
"""Processors that resize to a larger square than they crop, where it is small: ``crop_pct``."""

_SMALL = 384
"""Below this side, those crop; from there on they resize to the square itself."""

_NOT_DONE = {"rescale_offset": False, "include_top": False, "do_pad": False, "do_color_quantize": False}
"""Settings that would change the pixels otherwise, with the value that leaves them alone."""


@dataclass(frozen=True)
class PictureProcessor:
    """Resizing, cropping and normalising of pictures.

    Attributes:
        size: Height and width that a picture is resized to, whatever its shape; or one number, its shorter side's.
        crop: Height and width that are cut out of the middle afterwards; ``None`` cuts nothing.
        resample: Pillow's number of the filter.
        rescale: Factor on pixels of 0 to 255.
        mean: Taken from each channel.
        std: Each channel is divided by it.
    """

    size: tuple[int, int] | int
    crop: tuple[int, int] | None = None
    resample: int = _BICUBIC
    rescale: float = 1 / 255
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if isinstance(self.size, int) and self.crop is None:
            raise SettingsError("pictures of one side only do not fit into a batch: name a crop, too", field="size")

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], *, revision: str = "main", **_: Any) -> Self:
        """The settings beside a model, in a folder or on the hub.

        Raises:
            OSError: there are none.
            ModelError: they ask for something that is not done here; the message names it.
        """
        from transformers.image_processing_base import ImageProcessingMixin

        found, _unused = ImageProcessingMixin.get_image_processor_dict(os.fspath(source), revision=revision)
        return cls.from_dict(found)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Self:
        """The settings, from those of ``preprocessor_config.json``; raises ``ModelError`` as ``from_pretrained``."""
        for key, harmless in _NOT_DONE.items():
            if found.get(key, harmless) not in (harmless, None):
                raise ModelError(f"the image processor has {key}: {found[key]!r}, which is not done here", field=key)
        if not found.get("do_resize", True):
            raise ModelError("the image processor does not resize; pictures of any size make no batch", field="size")
        size, crop = _sizes(found)
        scaled, normal = found.get("do_rescale", True), found.get("do_normalize", True)
        return cls(
            size=size,
            crop=crop,
            resample=int(found.get("resample", _BICUBIC)),
            rescale=float(found.get("rescale_factor", 1 / 255)) if scaled else 1.0,
            mean=_three(found.get("image_mean", (0.5,) * 3)) if normal else (0.0,) * 3,
            std=_three(found.get("image_std", (0.5,) * 3)) if normal else (1.0,) * 3,
        )

    def to_dict(self) -> dict[str, Any]:
        """The settings as in ``preprocessor_config.json``, for digests and other programs."""
        square = {"height": self.size[0], "width": self.size[1]} if isinstance(self.size, tuple) else None
        cropped = None if self.crop is None else {"height": self.crop[0], "width": self.crop[1]}
        return {
            "image_processor_type": "ViTImageProcessor" if cropped is None else "CLIPImageProcessor",
            "do_resize": True,
            "size": square or {"shortest_edge": self.size},
            **({} if cropped is None else {"do_center_crop": True, "crop_size": cropped}),
            "resample": self.resample,
            "do_rescale": True,
            "rescale_factor": self.rescale,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes ``preprocessor_config.json``."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(Path(folder) / FILE, self.to_dict())

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of what the model reads."""
        if self.crop is not None:
            return self.crop
        assert isinstance(self.size, tuple)  # checked when it was made
        return self.size

    def to_square(self, side: int) -> Self:
        """The same for another size: a square of ``side`` pixels, without a crop."""
        return replace(self, size=(side, side), crop=None)

    def fit(self, pixels: Pixels) -> Pixels:
        """Resizes and crops one picture, ``[h, w, 3]`` to ``[*shape, 3]``."""
        from PIL import Image

        picture = Image.fromarray(pixels)
        size = self.size
        if isinstance(size, int):
            short, long = sorted(pixels.shape[:2])
            other = int(size * long / short)
            size = (size, other) if pixels.shape[0] <= pixels.shape[1] else (other, size)
        if (picture.height, picture.width) != size:
            picture = picture.resize((size[1], size[0]), resample=Image.Resampling(self.resample))
        fitted = np.asarray(picture, dtype=np.uint8)
        return fitted if self.crop is None else _cropped(fitted, self.crop)

    def normalise(self, fitted: Sequence[Pixels]) -> npt.NDArray[np.float32]:
        """What the model reads of fitted pictures, ``[B, 3, height, width]``."""
        # One factor and one offset a channel: the pictures pass through memory once.
        factor = (self.rescale / np.asarray(self.std, dtype=np.float64)).astype(np.float32)
        offset = (np.asarray(self.mean, dtype=np.float64) / np.asarray(self.std, dtype=np.float64)).astype(np.float32)
        scaled = np.stack(fitted).astype(np.float32) * factor - offset
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def _sizes(found: dict[str, Any]) -> tuple[tuple[int, int] | int, tuple[int, int] | None]:
    size, crop = found.get("size"), found.get("crop_size") if found.get("do_center_crop") else None
    if isinstance(size, int):
        size = {"height": size, "width": size}
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    cropped = None if crop is None else (int(crop["height"]), int(crop["width"]))
    if isinstance(size, dict) and {"height", "width"} <= set(size):
        return (int(size["height"]), int(size["width"])), cropped
    if not isinstance(size, dict) or set(size) != {"shortest_edge"}:
        raise ModelError(f"the image processor has the size {size!r}; known are height and width, and shortest_edge")
    side = int(size["shortest_edge"])
    if str(found.get("image_processor_type", "")).startswith(_CROPS):
        if side >= _SMALL:
            return (side, side), None
        return int(side / float(found.get("crop_pct") or 224 / 256)), (side, side)
    if cropped is None:
        raise ModelError("the image processor leaves pictures of any shape; a batch needs do_center_crop", field="size")
    return side, cropped


def _cropped(pixels: Pixels, crop: tuple[int, int]) -> Pixels:
    height, width = crop
    short = max(height - pixels.shape[0], 0), max(width - pixels.shape[1], 0)
    if any(short):
        around = [(total // 2, total - total // 2) for total in short]
        pixels = np.pad(pixels, [*around, (0, 0)])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def _three(values: Any) -> tuple[float, float, float]:
    found = [float(value) for value in ([values] * 3 if isinstance(values, int | float) else values)]
    if len(found) != 3:
        raise ModelError(f"the image processor is for {len(found)} channels; pictures have 3", field="image_mean")
    return found[0], found[1], found[2]

"""Classification of a whole picture: inspection, sorting, diagnosis."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from influence_engine.errors import InputError
from influence_engine.tasks import pictures
from influence_engine.tasks.classification import Classification
from influence_engine.tasks.contract import Array, Batch, Example
from influence_engine.tasks.fields import ExampleField
from influence_engine.tasks.identity import digest_of_processor
from influence_engine.tasks.image_processor import PictureProcessor
from influence_engine.tasks.parts import Part
from influence_engine.tasks.pictures import Pixels

_HELD = 256
"""Fitted pictures that are held in memory: what was checked a moment ago is not decoded again."""


_REGION = 32
"""Side of a region in pixels of what the model reads: what most networks' last feature map has a position for."""

_MOST_REGIONS = 7
"""In a row, and in a column: more would be too small to see."""


class ImageClassification(Classification):
    """One label a picture; the measurement is the log-odds of the target label.

    Args:
        processor: How pictures are resized and normalised.
        labels: The labels' names, in the order of the model's outputs.
        image: Name of the field that holds the picture: a path, or a data URL.
        label: Name of the field that holds the label's name.
        image_size: Pictures are resized to a square of so many pixels, whatever the processor says.
    """

    auto_class = "AutoModelForImageClassification"

    def __init__(
        self,
        processor: PictureProcessor,
        labels: Sequence[str],
        *,
        image: str = "image",
        label: str = "label",
        image_size: int | None = None,
    ) -> None:
        super().__init__(labels, label)
        self.image = image
        self._processor = processor if image_size is None else processor.to_square(image_size)
        self._fitted: OrderedDict[object, Pixels] = OrderedDict()
        self._digests: dict[object, bytes] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Without what is held in memory, and without the lock, which is no value."""
        return {**self.__dict__, "_fitted": OrderedDict(), "_digests": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As it was, with a lock of its own."""
        self.__dict__.update(state, _lock=threading.Lock())

    @property
    def fields(self) -> tuple[ExampleField, ...]:
        """The picture and its label."""
        return self.fields_for(self.labels, image=self.image, label=self.label)

    @staticmethod
    def fields_for(
        labels: Sequence[str], *, image: str = "image", label: str = "label", **_: Any
    ) -> tuple[ExampleField, ...]:
        """The fields of a task with these arguments; the others do not matter."""
        return ExampleField(image, "image"), ExampleField(label, "label", "target", tuple(labels))

    @property
    def processor(self) -> PictureProcessor:
        """The settings for pictures."""
        return self._processor

    def check(self, example: Example, *, labelled: bool) -> None:
        """Refuses a picture that is missing or cannot be read, and a label that does not exist."""
        if example.get(self.image) is None:
            raise InputError(f"{self.image!r} is missing; send a PNG or JPEG file", field=self.image)
        self._picture(example)
        self.check_label(example, labelled=labelled)

    def content(self, example: Example) -> bytes:
        """SHA-256 of the pixels as decoded, with their shape; not of the file, nor of where it lies."""
        key = self._key(example)
        if key not in self._digests:
            pixels = self._decoded(example)
            self._digests[key] = hashlib.sha256(f"{pixels.shape}|".encode() + pixels.tobytes()).digest()
        return self._digests[key]

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Returns ``pixel_values`` ``[B, 3, height, width]`` and ``labels`` ``[B]``."""
        return {
            "pixel_values": torch.from_numpy(self.serving_inputs(examples)["pixel_values"]),
            "labels": self.label_numbers(examples),
        }

    def sizes(self, examples: Sequence[Example]) -> list[int]:
        """Numbers in each example's pixels; all are equal."""
        height, width = self._processor.shape
        return [3 * height * width] * len(examples)

    def model_inputs(self, batch: Batch) -> dict[str, Tensor]:
        """The pixels."""
        return {"pixel_values": batch["pixel_values"]}

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits ``[B, C]``."""
        logits: Tensor = model(pixel_values=batch["pixel_values"]).logits
        return logits

    def serving_inputs(self, examples: Sequence[Example]) -> dict[str, Array]:
        """What ``model_inputs`` makes of ``collate``, as an array ``[B, 3, height, width]``."""
        return {"pixel_values": self._processor.normalise([self._picture(example) for example in examples])}

    def kept(self, example: Example) -> Example:
        """The example with its picture as the model reads it, in a data URL: all that explaining it ever needs."""
        value = example[self.image]
        name = Path(pictures.name_of(value)).name
        return {**example, self.image: pictures.data_url(pictures.encode_png(self._picture(example)), name)}

    def show(self, example: Example) -> str:
        """What its picture is called."""
        return pictures.name_of(example[self.image])

    @property
    def regions(self) -> int:
        """Rows, and columns, of the regions that a picture is divided into."""
        return min(_MOST_REGIONS, max(2, min(self._processor.shape) // _REGION))

    def parts(self, example: Example) -> list[Part]:
        """The regions of a picture, row by row, and the whole of it for what lies nowhere (a classifier's bias)."""
        return [*(Part(self.image, number, number + 1) for number in range(self.regions**2)), Part(self.image)]

    def parts_of_positions(self, example: Example, shape: tuple[int, ...]) -> Tensor:
        """The regions that positions of a feature map, or patches in a row, have their middles in.

        What has no place (a ``[CLS]`` before the patches, a map of one position, a pooled vector) is in the last part.
        """
        whole = self.regions**2
        if len(shape) == 2 and min(shape) > 1:
            return _regions(*shape, self.regions)
        if len(shape) == 1:
            side = math.isqrt(shape[0])
            before = shape[0] - side * side
            if side > 1 and before <= 1:  # patches of a square, after a [CLS] or without
                return torch.cat([torch.full((before,), whole), _regions(side, side, self.regions).flatten()])
        return torch.full(shape, whole)

    def describe(self) -> dict[str, Any]:
        """Identity of this task for digests."""
        return {
            "type": "image_classification",
            "labels": self.labels,
            "image": self.image,
            "label": self.label,
            "processor_digest": digest_of_processor(self._processor),
        }

    def _picture(self, example: Example) -> Pixels:
        """The picture of an example as the model reads it, before it is normalised."""
        key = self._key(example)
        with self._lock:
            held = self._fitted.get(key)
            if held is not None:
                self._fitted.move_to_end(key)
                return held
        fitted = self._processor.fit(self._decoded(example))
        with self._lock:
            self._fitted[key] = fitted
            while len(self._fitted) > _HELD:
                self._fitted.popitem(last=False)
        return fitted

    def _decoded(self, example: Example) -> Pixels:
        with self._named():
            return pictures.decode(example[self.image])

    def _key(self, example: Example) -> object:
        """What a picture is held under: its file as it is now, or a digest of what was sent."""
        value = example[self.image]
        if isinstance(value, os.PathLike) or (isinstance(value, str) and not value.startswith("data:")):
            try:
                found = os.stat(value)
            except (OSError, ValueError):
                return str(value)
            return str(value), found.st_mtime_ns, found.st_size
        with self._named():
            sent = value.encode() if isinstance(value, str) else pictures.file_bytes(value)
        return hashlib.sha256(sent).digest()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            raise InputError(f"{self.image!r} {error.message}", field=self.image) from None


def _regions(height: int, width: int, side: int) -> Tensor:
    """Numbers of the regions, ``side`` a row, that the positions of a map lie in, ``[height, width]``."""
    row = torch.arange(height).mul(2).add(1).mul(side).div(2 * height, rounding_mode="floor")
    column = torch.arange(width).mul(2).add(1).mul(side).div(2 * width, rounding_mode="floor")
    return row.unsqueeze(1) * side + column

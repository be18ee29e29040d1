"""Parts of a training example that its influence is split over: the mentions of a text, the regions of an image.

An example's influence is an inner product with the gradient of its loss. That gradient is a sum in two ways, and each
says where an influence comes from:

* over terms of the loss (``LossPartsTask``): what the example *taught*, such as each mention of a tagged text;
* over positions in the layers (``PositionPartsTask``): what the example's gradient was *read off*, such as each region
  of a photograph with one label.

Whoever implements one of the two has parts in its explanations; the numbers of all parts sum to the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from influence_engine.tasks.contract import Batch, Example


@dataclass(frozen=True)
class Part:
    """One part of an example.

    Attributes:
        field: The field it is a part of.
        start: First character of it there (of an image: row-major number of the region); ``None`` for what is in no
            other part.
        end: One past the last; ``None`` as ``start``.
        label: What training teaches of it, such as a mention's type; ``None`` where that is nothing of its own.
    """

    field: str
    start: int | None = None
    end: int | None = None
    label: str | None = None


@runtime_checkable
class LossPartsTask(Protocol):
    """Optional: an example's loss is a sum over parts of it."""

    def parts(self, example: Example) -> Sequence[Part]:
        """The parts, in the order of the columns of ``loss_parts``."""

    def loss_parts(self, outputs: Tensor, batch: Batch) -> Tensor:
        """What each part adds to the loss, ``[B, P]``; the rows sum to ``Task.loss``.

        ``P`` is the number of parts of the example of the batch with most of them, or larger; columns past an
        example's own parts are 0.
        """


@runtime_checkable
class PositionPartsTask(Protocol):
    """Optional: positions in a model's layers lie in parts of the example."""

    def parts(self, example: Example) -> Sequence[Part]:
        """The parts; each position lies in one of them."""

    def parts_of_positions(self, example: Example, shape: tuple[int, ...]) -> Tensor:
        """The number, in ``parts``, of the part that each position of a layer lies in, of that shape, whole numbers.

        Args:
            example: The example.
            shape: The positions of a layer's output: ``(T,)`` tokens, ``(height, width)`` of a feature map, ``()``
                where the layer has no position left, as a classifier's head.
        """

"""A small task of every kind, with a model of a few hundred weights and data that it can learn; one file a kind.

They are what a user would write: nothing here is known to the engine but by the contract. A new task gets a toy of its
own, and is done when ``test_contract.py`` passes for it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.tasks.toys.base import Toy
from tests.tasks.toys.entities import entities
from tests.tasks.toys.image import images
from tests.tasks.toys.language import language
from tests.tasks.toys.multi_label import multi_label
from tests.tasks.toys.pair import pairs
from tests.tasks.toys.pictures import convnext, efficientnet_lite, pictures, resnet, vit
from tests.tasks.toys.regression import regression
from tests.tasks.toys.text import text
from tests.tasks.toys.tokens import tokens
from tests.tasks.toys.vector import vectors

__all__ = ["TOYS", "Toy"]

TOYS: dict[str, Callable[[Path], Toy]] = {
    "vectors": vectors,
    "text": text,
    "pairs": pairs,
    "multi-label": multi_label,
    "regression": regression,
    "tokens": tokens,
    "entities": entities,
    "images": images,
    "vit": pictures(vit, "vit", trainable=1),
    "convnext": pictures(convnext, "convnext", learning_rate=0.01),
    "resnet": pictures(resnet, "resnet", learning_rate=0.005),
    "efficientnet-lite": pictures(efficientnet_lite, "efficientnet-lite", learning_rate=0.004),
    "language": language,
}

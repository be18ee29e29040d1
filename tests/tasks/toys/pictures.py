"""Pictures in PNG files, classified by small networks of ``transformers`` and by our EfficientNet-Lite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from influence_engine.models.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteForImageClassification
from influence_engine.tasks import ImageClassification, PictureProcessor
from tests.small_models import seeded
from tests.tasks.toys.base import Toy, with_ids

LABELS = ["plain", "cracked"]
SIDE = 16


def pictures(model: Callable[[], nn.Module], name: str, **settings: Any) -> Callable[[Path], Toy]:
    """A toy of that network: grey squares, some with a dark line across them."""

    def make(folder: Path) -> Toy:
        draw, rows = np.random.default_rng(3), []
        for number in range(20):
            pixels = draw.integers(60 + 8 * number, 255, (SIDE + number % 3, SIDE), dtype=np.uint8)
            label = LABELS[number % 2]
            if label == "cracked":
                pixels[SIDE // 2 - 2 : SIDE // 2 - 1 + number // 5] = 5 * number
            path = folder / f"{number}.png"
            Image.fromarray(pixels).save(path)
            rows.append({"image": str(path), "label": label})
        task = ImageClassification(PictureProcessor(size=(SIDE, SIDE)), LABELS)
        queries = [{"image": rows[0]["image"]}, {"image": rows[1]["image"]}]
        return Toy(
            name,
            task,
            lambda seed: seeded(model, seed),
            with_ids(rows[2:]),
            queries,
            list(LABELS),
            "broken",
            plain=False,
            **settings,
        )

    return make


def vit() -> nn.Module:
    """Four patches and a ``[CLS]``; what is no layer (the patches' places, ``[CLS]``) is not trained."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    shape = {"image_size": SIDE, "patch_size": 8, "num_labels": 2, "attn_implementation": "eager"}
    return ViTForImageClassification(ViTConfig(**sizes, **dropout, **shape))


def convnext() -> nn.Module:
    """Depthwise convolutions and normalisation along channels; without scales of layers, which are no layers."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    sizes = {"hidden_sizes": [6, 8], "depths": [1, 2], "num_stages": 2, "patch_size": 4}
    return ConvNextForImageClassification(ConvNextConfig(**sizes, layer_scale_init_value=0.0, num_labels=2))


def resnet() -> nn.Module:
    """Convolutions and batch normalisation."""
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 6, "hidden_sizes": [6, 8], "depths": [1, 1], "layer_type": "basic", "hidden_act": "gelu"}
    return ResNetForImageClassification(ResNetConfig(**sizes, num_labels=2))


def efficientnet_lite() -> nn.Module:
    """Depthwise convolutions with uneven padding; batch normalisation is frozen."""
    stages = [(1, 3, 1, 1, 6), (2, 5, 2, 2, 8)]
    sizes = {"stem_channels": 6, "head_channels": 12, "num_labels": 2}
    config = EfficientNetLiteConfig(stages=stages, initializer_range=0.4, **sizes)
    return EfficientNetLiteForImageClassification(config)

"""Promise: what a model reads of a picture is what ``transformers`` makes of it with the same settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from influence_engine.errors import ModelError
from influence_engine.tasks import PictureProcessor
from influence_engine.tasks.identity import digest_of_processor

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SETTINGS: dict[str, dict[str, Any]] = {
    "ViTImageProcessor": {"size": {"height": 24, "width": 24}, "resample": 2},
    "ConvNextImageProcessor": {"size": {"shortest_edge": 28}, "crop_pct": 0.875, "resample": 3},
    "CLIPImageProcessor": {
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 24, "width": 24},
        "do_center_crop": True,
        "resample": 3,
    },
}


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("shape", [(40, 60), (61, 37), (24, 24)])
def test_pixels_are_those_of_transformers(kind: str, shape: tuple[int, int]) -> None:
    import transformers

    settings = {"image_mean": MEAN, "image_std": STD, **SETTINGS[kind]}
    theirs = getattr(transformers, f"{kind}Pil")(**settings)
    pixels = np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)
    expected = np.asarray(theirs(images=Image.fromarray(pixels), return_tensors="np")["pixel_values"])
    ours = PictureProcessor.from_dict({"image_processor_type": kind, **settings})
    found = ours.normalise([ours.fit(pixels)])
    assert found.dtype == np.float32
    assert found.shape[2:] == ours.shape
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_settings_survive_a_folder(tmp_path: Path) -> None:
    for kind, settings in SETTINGS.items():
        made = PictureProcessor.from_dict({"image_processor_type": kind, "image_mean": MEAN, **settings})
        made.save_pretrained(tmp_path / kind)
        again = PictureProcessor.from_pretrained(tmp_path / kind)
        assert again == made
        assert digest_of_processor(again) == digest_of_processor(made) != digest_of_processor(made.to_square(16))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"size": {"height": 8, "width": 8}, "rescale_offset": True}, "rescale_offset"),
        ({"size": {"height": 8, "width": 8}, "do_resize": False}, "does not resize"),
        ({"size": {"longest_edge": 8}}, "longest_edge"),
        ({"size": {"shortest_edge": 8}}, "do_center_crop"),
        ({"size": {"height": 8, "width": 8}, "image_mean": [0.5]}, "1 channels"),
    ],
)
def test_settings_that_are_not_followed_are_refused_by_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        PictureProcessor.from_dict(settings)

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from influence_engine.data import DataSettings


@pytest.mark.parametrize("settings", [{}, {"csv": "a.csv", "jsonl": "a.jsonl"}, {"text": "a"}])
def test_exactly_one_source_must_be_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"needs exactly one source of hub, csv|Extra inputs"):
        DataSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"csv": "a.csv", "split": "train"}, "split only goes with hub or dataset"),
        ({"jsonl": "a.jsonl", "delimiter": ";"}, "delimiter only goes with csv"),
        ({"csv": "a.csv", "min_rating": 1.0}, "min_rating only goes with packaged"),
        ({"dataset": "a", "revision": "main"}, "revision only goes with hub"),
    ],
)
def test_a_key_without_effect_is_refused(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError, match=key):
        DataSettings(**settings)


def test_labels_may_be_keyed_by_what_yaml_makes_of_them() -> None:
    settings = DataSettings(csv="a.csv", labels={0: "negative", True: "positive", "mixed": "negative"})

    assert settings.labels == {"0": "negative", "true": "positive", "mixed": "negative"}

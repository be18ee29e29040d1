"""Inspects the checkpoint of a sequence classifier that was trained elsewhere, for what its config must say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audit_service.artifacts.trainer_state import recorded_settings
from influence_engine.errors import ModelError

ARCHITECTURE = "ForSequenceClassification"
LONGEST_TEXT = 512
"""Tokens; a checkpoint does not say how its training cut texts, and most tokenizers' own limit is this or larger."""


@dataclass(frozen=True)
class Checkpoint:
    """The facts about a checkpoint that its config must say.

    Attributes:
        folder: Where it lies.
        architecture: The class of ``transformers`` that loads it.
        labels: Names of the labels in the order of the model's outputs.
        max_length: The longest text in tokens that the model takes, at most 512.
        parameters: Number of the model's parameters.
        left_out: Names of the parameters that explanations cannot go through, with their sizes.
        training: Settings of its training as far as ``trainer_state.json`` beside it says them: a proposal for a
            surrogate (``finetune`` of the config).
    """

    folder: Path
    architecture: str
    labels: tuple[str, ...]
    max_length: int
    parameters: int
    left_out: Mapping[str, int]
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def share_left_out(self) -> float:
        """Share of the parameters that explanations cannot go through."""
        return sum(self.left_out.values()) / self.parameters


def inspect_checkpoint(folder: Path) -> Checkpoint:
    """Loads the checkpoint once and returns the facts about it.

    Raises:
        ModelError: the folder is no complete sequence classifier in safetensors; the message says what is missing.
    """
    # Imported here, not above: torch takes seconds, and `init --help` needs none of it.
    from influence_engine.gradients.tracked import track
    from influence_engine.models.loading import load_model, load_processor

    configuration = _configuration(folder)
    labels = _labels(folder, configuration)
    model = load_model(folder)
    model.requires_grad_(True)
    tracked = track(model, allow_left_out=True)
    limits = (load_processor(folder).model_max_length, configuration.get("max_position_embeddings"), LONGEST_TEXT)
    return Checkpoint(
        folder=folder,
        architecture=configuration["architectures"][0],
        labels=labels,
        max_length=min(int(limit) for limit in limits if isinstance(limit, int) and limit > 0),
        parameters=tracked.parameters,
        left_out=tracked.left_out,
        training=recorded_settings(folder),
    )


def _configuration(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder; name the one that save_pretrained wrote", field="model")
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} holds an adapter alone; merge it into its base model first "
            "(peft: model.merge_and_unload().save_pretrained(FOLDER))",
            field="model",
        )
    try:
        configuration: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{folder} has no config.json; name the folder that save_pretrained wrote", field="model"
        ) from None
    except ValueError as error:
        raise ModelError(f"{folder / 'config.json'} is not valid JSON: {error}", field="model") from error
    architecture = (configuration.get("architectures") or ["no architecture"])[0]
    if not architecture.endswith(ARCHITECTURE):
        raise ModelError(
            f"{folder} holds {architecture}; `init` adopts sequence classifiers (…{ARCHITECTURE}). Other models are "
            "plugged in with a Task of your own: see the README",
            field="model",
        )
    return configuration


def _labels(folder: Path, configuration: Mapping[str, Any]) -> tuple[str, ...]:
    names = configuration.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    if configuration.get("problem_type") == "multi_label_classification" or len(names) < 2:
        kind = "a regression" if len(names) < 2 else "several labels a text"
        raise ModelError(
            f"{folder} was trained for {kind}; `init` adopts classifiers with one label a text", field="model"
        )
    return tuple(names[number] for number in sorted(names, key=int))

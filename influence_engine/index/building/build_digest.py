"""The digest of all that an index's vectors depend on, by which a version is named and found again.

The digest has to come out the same for the same build for as long as there are indexes: whatever is renamed, added or
released later must not change the digest. So nothing here is taken from names or versions of the code.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from influence_engine.curvature.gradient_passes import GradientPasses
from influence_engine.digests import json_digest
from influence_engine.index.building.approximation import Approximation
from influence_engine.index.building.provenance import Provenance
from influence_engine.index.settings import IndexSettings
from influence_engine.tasks import describe_task, described_by_name, digest_by_name

FORMULA = 3
"""Raised whenever the same inputs come to give other vectors: versions by an older formula are then built again."""

_AS_IN_0_1_0 = {"format": 3, "code": "0.1.0"}
"""Until 0.1.0 the digest covered the versions of the manifest's format and of the code, which are provenance now. Their
values of that time stay in the digest, so that every index of that time is still found."""

_SETTINGS_IN_0_1_0 = (
    "dimensions",
    "coordinates",
    "approximation",
    "segments",
    "damping",
    "metric",
    "dtype",
    "store_examples",
    "unsupported_layers",
    "batch_tokens",
    "hessian_directions",
    "sample",
    "curvature_draws",
    "seed",
)
"""Settings that are always in the digest. A later setting is in the digest only where it is not at its default, and its
default has to mean the behaviour before the setting existed."""

_STEP_TENSORS = (
    "examples",
    "pulled",
    "direct",
    "late",
    "curvature",
    "source",
    "gradient",
    "along",
    "clip",
    "coupled",
    "coupled_late",
    "coupled_along",
)
"""Names of a linearised step's tensors in 0.1.0; a change of the tensors raises ``FORMULA``."""


def build_digests(
    passes: GradientPasses, settings: IndexSettings, provenance: Provenance, approximation: Approximation
) -> list[str]:
    """SHA-256 over model, base, processor, data and task, the record of the training, and the settings.

    Returns:
        The present digest; and, where it differs, the one under which 0.1.0 built the same index. 0.1.0 identified a
        task without ``describe`` by the name of its class alone, and inputs by their fields alone.
    """
    task = passes.task
    found = [_digest(passes, settings, provenance, approximation, task_is=describe_task(task))]
    known = {name: digest for name, digest in provenance.digests.items() if name != "inputs"}
    if known != provenance.digests or digest_by_name(task) is not None:
        older = described_by_name(task) if digest_by_name(task) is not None else describe_task(task)
        known["task"] = json_digest(older)
        found.append(_digest(passes, settings, replace(provenance, digests=known), approximation, task_is=older))
    return found


def _digest(
    passes: GradientPasses,
    settings: IndexSettings,
    provenance: Provenance,
    approximation: Approximation,
    *,
    task_is: dict[str, Any],
) -> str:
    record = approximation.record
    return json_digest(
        {
            **_AS_IN_0_1_0,
            "formula": FORMULA,
            "digests": provenance.digests,
            "training": provenance.training_digest(),
            "record": None if record is None else json_digest(record.manifest["files"]),
            "steps": None if approximation.steps is None else list(_STEP_TENSORS),
            "settings": digested_settings(settings),
            "task": task_is,
            "trained": [layer.name for layer in passes.tracked.layers],
        }
    )


def digested_settings(settings: IndexSettings) -> dict[str, Any]:
    """The settings that the vectors depend on, without later ones that are at their defaults."""
    default = type(settings)().model_dump(mode="json")
    found = settings.model_dump(mode="json")
    return {name: value for name, value in found.items() if name in _SETTINGS_IN_0_1_0 or value != default[name]}

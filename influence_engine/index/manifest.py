"""The index's manifest: what it was built from, how, and the digests that prove it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from influence_engine.errors import IndexFormatError
from influence_engine.files import read_json, write_json
from influence_engine.index.settings import ApproximationName

FORMAT = 3


class LayerSummary(BaseModel):
    """One layer of the index: its size and its share of the coordinates."""

    model_config = ConfigDict(extra="forbid")

    name: str
    shape: tuple[int, int]
    ranks: tuple[int, int]


class Manifest(BaseModel):
    """What stands in ``manifest.json`` beside the index's files.

    Attributes:
        build_digest: Over everything that determines the index: model, base, tokenizer, data, task, settings, code.
        content_digest: Over the rows (fields and vectors) in ``example_id`` order.
        digests: Of model, base, tokenizer, data and task.
        rows: Examples.
        dimensions: Values stored for each.
        coordinates: Coordinates of all layers before the eigenbasis.
        approximation: ``unrolled``, ``segments`` or ``final``, which ``IndexSettings`` describes.
        scale: Stored vectors are ``scale`` times the whitened gradients (``final``) or ``d theta / d w`` (else).
        damping: ``lambda``, with ``damping_source`` one of ``settings``, ``record``, ``displacement`` (how far
            the weights are from the base model's) and ``heuristic``; for ``segments`` one over the length of the
            training; 0 and ``none`` for ``unrolled``.
        metric: The preconditioner: ``adam``, ``adam, estimated`` or ``identity``.
        energy_kept: Share of the sampled gradients' energy that the eigenbasis keeps of the layers' coordinates.
        retained: Quantiles over held-out examples of the share of a gradient's squared norm that the index keeps;
            empty where no held-out examples were given.
        influence_kept: Share of the squared influence on held-out examples that lies within the index's coordinates,
            estimated (``building.retention``). None without held-out examples.
        tiers: The tiers that this index can answer, with what is missing for the others.
        files: Digest of every file but the example table, whose content has a digest of its own.
    """

    model_config = ConfigDict(extra="forbid")

    format: int = FORMAT
    build_digest: str
    content_digest: str
    digests: dict[str, str | None]
    settings: dict[str, Any]
    rows: int
    dimensions: int
    coordinates: int
    approximation: ApproximationName
    scale: float
    damping: float
    damping_source: str
    metric: str
    energy_kept: float
    retained: dict[str, float]
    influence_kept: float | None
    layers: list[LayerSummary]
    left_out: dict[str, int]
    tiers: dict[str, str]
    task: dict[str, Any]
    versions: dict[str, str]
    created: str
    files: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Reads and checks a manifest.

        Raises:
            IndexFormatError: it is of another format version, or incomplete.
        """
        raw = read_json(path)
        found = raw.get("format") if isinstance(raw, dict) else None
        if found != FORMAT:
            raise IndexFormatError(
                f"{path} has index format {found!r}; this version reads format {FORMAT}. Build the index again.",
                field=str(path),
            )
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise IndexFormatError(f"{path} is incomplete: {error}", field=str(path)) from error

    def write(self, path: Path) -> None:
        """Writes it, whole or not at all."""
        write_json(path, self.model_dump(mode="json"))

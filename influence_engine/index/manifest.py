"""The index's manifest: what the index was built from, how, and the digests that prove it.

``format_version`` is raised only for changes that older code would read wrongly. Every other addition is optional: an
entry or a part that this code does not know is preserved, and never a reason to refuse. The code's version is
provenance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from influence_engine.errors import IndexFormatError
from influence_engine.files import read_json, write_json
from influence_engine.index.settings import ApproximationName

MANIFEST = "manifest.json"

FORMAT_VERSION = 3
"""Format of the manifests that this code writes. Until 0.1.0 the key was ``format``; versions 1 and 2 were never
released and hold other vectors."""

OLDEST_FORMAT_VERSION = 3


class LayerSummary(BaseModel):
    """One layer of the index: its size and its share of the coordinates."""

    model_config = ConfigDict(extra="allow")

    name: str
    shape: tuple[int, int]
    ranks: tuple[int, int]


class PartEntry(BaseModel):
    """An optional part of a version, made with it or added later.

    Attributes:
        version: Of the part's own format.
        files: SHA-256 of its files, by their path in the version's folder.
        made_by: Version of bento-audit that made it.
        created: When, in ISO 8601.
    """

    model_config = ConfigDict(extra="allow")

    version: int
    files: dict[str, str]
    made_by: str
    created: str


class Manifest(BaseModel):
    """The content of ``manifest.json`` in a version's folder.

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
        training_time: Length of the training, the sum of its learning rates in preconditioned coordinates; ``None``
            where it is not known, and in versions before it was written.
        metric: The preconditioner: ``adam``, ``adam, estimated`` or ``identity``.
        energy_kept: Share of the sampled gradients' energy that the eigenbasis keeps of the layers' coordinates.
        retained: Quantiles over held-out examples of the share of a gradient's squared norm that the index keeps;
            empty where no held-out examples were given.
        influence_kept: Share of the squared influence on held-out examples that lies within the index's coordinates,
            estimated (``building.retention``). None without held-out examples.
        tiers: The tiers that this index can answer, with what is missing for the others.
        files: Digest of every file but the example table, whose content has a digest of its own.
        versions: Of the code that built it.
        parts: Optional parts, by name (``influence_engine.index.parts``).
    """

    model_config = ConfigDict(extra="allow")

    format_version: int = FORMAT_VERSION
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
    training_time: float | None = None
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
    parts: dict[str, PartEntry] = {}

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Reads and checks a manifest.

        Raises:
            IndexFormatError: it is of a format version that is not known here, or incomplete.
        """
        raw = read_json(path)
        if not isinstance(raw, dict):
            raise IndexFormatError(f"{path} does not describe an index", field=str(path))
        found = raw.pop("format", None)
        found = raw.setdefault("format_version", found)
        if not isinstance(found, int) or not OLDEST_FORMAT_VERSION <= found <= FORMAT_VERSION:
            raise IndexFormatError(_why_not_read(path, raw, found), field=str(path))
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise IndexFormatError(f"{path} is incomplete: {error}", field=str(path)) from error

    def write(self, path: Path) -> None:
        """Writes it, whole or not at all."""
        write_json(path, self.model_dump(mode="json"))


def _why_not_read(path: Path, raw: dict[str, Any], found: Any) -> str:
    reads = f"this one reads format versions {OLDEST_FORMAT_VERSION} to {FORMAT_VERSION}"
    if isinstance(found, int) and found > FORMAT_VERSION:
        wrote = raw.get("versions", {}).get("bento-audit", "of an unknown version")
        return (
            f"{path} has format version {found}, written by bento-audit {wrote}; {reads}. Install that version or a "
            "later one, or build the index again: bento-audit index build"
        )
    return f"{path} has format version {found!r}; {reads}. Build the index again: bento-audit index build"

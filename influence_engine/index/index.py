"""The training-gradient index: build, open, verify, search."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from influence_engine.digests import verify_folder
from influence_engine.errors import DigestMismatchError, IndexFormatError, SettingsError
from influence_engine.index.building.cost_estimate import BuildPlan
from influence_engine.index.building.pipeline import (
    ENCODER,
    TABLE,
    VERSIONS,
    build_version,
    current_version,
    predict_build,
)
from influence_engine.index.building.provenance import Provenance
from influence_engine.index.calibration import Calibration
from influence_engine.index.contents import StoreExamples, contents_for
from influence_engine.index.encoding.cuda_graph import GraphedEncoding
from influence_engine.index.encoding.encoder import Encoder
from influence_engine.index.file_sums import verify_files
from influence_engine.index.manifest import MANIFEST, Manifest
from influence_engine.index.parts import replace_part
from influence_engine.index.replay_basis import ReplayBasis
from influence_engine.index.resident import ResidentVectors
from influence_engine.index.settings import IndexSettings
from influence_engine.index.store import RESERVED, ExampleTable
from influence_engine.models.loading import model_digest
from influence_engine.progress import Progress, silent
from influence_engine.resources import choose_device
from influence_engine.tasks import Example, Task, describe_task, matches_task
from influence_engine.training import Run, in_recorded_order
from influence_engine.training.identity import check_examples, data_digests, task_digests

BASIS = "replay.safetensors"
"""The replay basis beside a version's vectors: made later, or never."""

CALIBRATION = "calibration.json"
"""What retraining said about a version's answers, beside its vectors: made later, or never."""

GROUPING = ("label", "source", "licence", "consent")
"""Columns of every example that it can be grouped by."""

DESCRIPTION = ("example_handle", "source", "fields")
"""What an explanation says about a training example, beside its id and label."""


class InfluenceIndex:
    """One opened version of an index; its vectors are resident on one device.

    Attributes:
        folder: The version's folder.
        manifest: What it was built from and how.
        encoder: Turns layer gradients into queries.
        encode_and_weigh: The encoder's function of that name, on a GPU by one launch for a single query.
        table: The examples.
    """

    def __init__(self, folder: Path, manifest: Manifest, device: torch.device, key: bytes | None = None) -> None:
        self.folder = folder
        self.manifest = manifest
        self.device = device
        self.encoder = Encoder.load(folder / ENCODER).to(device).packed()
        self.encode_and_weigh = GraphedEncoding(self.encoder.encode_and_weigh)
        self.store_examples: StoreExamples = manifest.settings.get("store_examples", "inline")
        self.table = ExampleTable(folder / TABLE, contents_for(self.store_examples, key))
        self._source: Mapping[str, Example] = {}
        self._vectors = ResidentVectors.read(self.table, device)
        self._weights = torch.tensor(self.table.column("weight"), device=device)
        if self._vectors.shape != (manifest.rows, manifest.dimensions):
            raise IndexFormatError(
                f"{folder / TABLE} holds vectors {self._vectors.shape}, the manifest says "
                f"({manifest.rows}, {manifest.dimensions})",
                field=str(folder),
            )
        self.labels: list[str | None] = self.table.column("label")
        self.example_ids: list[str] = self.table.column("example_id")
        described = DESCRIPTION if self.store_examples == "inline" else ("example_id", *DESCRIPTION)
        self._described_bytes = self.table.keep(described)
        self.basis: ReplayBasis | None = None
        self.calibration: Calibration | None = None
        self.reload_basis()

    def __len__(self) -> int:
        return self.manifest.rows

    @classmethod
    def build(
        cls,
        model: nn.Module,
        task: Task,
        train: Sequence[Example],
        path: str | os.PathLike[str],
        settings: IndexSettings | None = None,
        *,
        base: nn.Module | None = None,
        held_out: Sequence[Example] = (),
        key: bytes | None = None,
        device: str = "auto",
        progress: Progress = silent,
    ) -> InfluenceIndex:
        """Builds an index for a model whose training was not recorded, and opens it.

        It is taken to have been trained with Adam or AdamW, whose metric is estimated; ``settings.metric`` can say
        otherwise.

        Args:
            model: The fine-tuned model; ``requires_grad`` marks what was trained.
            task: Its task.
            train: Its training examples.
            path: Where the index and its versions are kept.
            settings: How to build; the defaults are good ones.
            base: The model before fine-tuning, where known: the weights are taken to have come straight from there,
                in a time that follows from how far they have gone; its digest goes on record.
            held_out: Examples that were not trained on; how much of their gradients the index keeps tells it later
                which queries lie outside.
            key: 32 bytes, for an index that keeps its examples encrypted.
            device: ``auto`` builds on the GPU where there is one.
            progress: Told of every batch.

        Raises:
            DataError: no examples, or ids missing or doubled.
            ModelError: layers that cannot be attributed, or a gradient that is not finite.
            SettingsError: a setting that does not go with the model.
            ResourceError: too little disk or memory; the message says what would fit.
        """
        check_examples(task, train, "training")
        digests = {
            **data_digests(task, train),
            "model": model_digest(model),
            "base": None if base is None else model_digest(base),
            **task_digests(task),
        }
        provenance = Provenance(digests, base=base)
        return cls._built(model, task, train, path, settings, provenance, held_out, key, device, progress)

    @classmethod
    def build_from_run(
        cls,
        run: str | os.PathLike[str] | Run,
        task: Task,
        train: Sequence[Example],
        path: str | os.PathLike[str],
        settings: IndexSettings | None = None,
        *,
        into: nn.Module | None = None,
        held_out: Sequence[Example] = (),
        key: bytes | None = None,
        device: str = "auto",
        progress: Progress = silent,
    ) -> InfluenceIndex:
        """Builds an index from a recorded run: optimiser's metric and damping come from the record.

        Args:
            run: The run or its folder.
            train: The examples it was trained on, in any order; the index has them in the recorded one.
            into: For a module that is not from ``transformers``: a freshly built one, which is filled.

        The other arguments are those of ``build``.

        Raises:
            DigestMismatchError: data or task are not the recorded ones.
        """
        opened = run if isinstance(run, Run) else Run.open(run)
        examples = in_recorded_order(opened, task, train)
        model = opened.load_model(into)
        provenance = Provenance.of(opened)
        return cls._built(model, task, examples, path, settings, provenance, held_out, key, device, progress)

    @classmethod
    def _built(
        cls,
        model: nn.Module,
        task: Task,
        train: Sequence[Example],
        path: str | os.PathLike[str],
        settings: IndexSettings | None,
        provenance: Provenance,
        held_out: Sequence[Example],
        key: bytes | None,
        device: str,
        progress: Progress,
    ) -> InfluenceIndex:
        model, settings = model.to(choose_device(device)), settings or IndexSettings()
        build_version(model, task, train, Path(path), settings, provenance, held_out, progress, key=key)
        return cls.open(path, key=key, device=device)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        version: str | None = None,
        model_digest: str | None = None,
        key: bytes | None = None,
        device: str = "auto",
    ) -> InfluenceIndex:
        """Opens the current version, or the one named, after checking its files.

        Args:
            path: The index.
            version: Name of a version, by default the one in ``CURRENT``.
            model_digest: Digest of the model it will be used with.
            key: That examples are encrypted with, where they are; without it, their fields are empty.
            device: Where its vectors go.

        Raises:
            IndexFormatError: there is no index, or not of a format known here.
            DigestMismatchError: a file has changed, or the index is of another model.
        """
        folder = Path(path) / VERSIONS / (version or current_version(path))
        if not (folder / MANIFEST).is_file():
            raise IndexFormatError(f"{path} has no version {folder.name!r}", field=str(path))
        manifest = Manifest.read(folder / MANIFEST)
        if model_digest is not None and manifest.digests.get("model") != model_digest:
            raise DigestMismatchError(
                f"the index in {path} was built for the model with digest {manifest.digests.get('model')}, not for "
                f"this one ({model_digest}). Build an index for it: bento-audit index build",
                field=str(path),
            )
        verify_folder(folder, manifest.files)
        return cls(folder, manifest, choose_device(device), key)

    @staticmethod
    def plan(
        model: nn.Module,
        task: Task,
        train: Sequence[Example],
        settings: IndexSettings | None = None,
        *,
        run: Run | None = None,
        base: nn.Module | None = None,
    ) -> BuildPlan:
        """Predicts time, disk and memory of a build, of the recorded ``run``, or of a model with a known ``base``."""
        provenance = Provenance({}, base=base) if run is None else Provenance.of(run)
        return predict_build(model, task, train, settings or IndexSettings(), provenance)

    def verify(self, progress: Progress = silent) -> None:
        """Reads every file and row again and compares digests, while ``progress`` is told of every file.

        Raises:
            DigestMismatchError: a file or a row has changed since the index was built.
        """
        verify_files(self.folder, progress)
        found = self.table.content_digest()
        if found != self.manifest.content_digest:
            raise DigestMismatchError(
                f"{self.folder / TABLE} has changed since it was built: its content digest is {found}, the manifest "
                f"says {self.manifest.content_digest}",
                field=str(self.folder / TABLE),
            )

    def inspect(self) -> dict[str, Any]:
        """The manifest, with the disk and memory that the index takes."""
        disk = sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
        return {
            **self.manifest.model_dump(mode="json"),
            "format": self.manifest.format_version,  # as it was called until 0.1.0
            "tiers": self.tiers,
            "calibration": None if self.calibration is None else self.calibration.model_dump(mode="json"),
            "disk_bytes": disk,
            "resident_bytes": self.resident_bytes,
        }

    @property
    def resident_bytes(self) -> int:
        """Bytes in memory that grow with the index: vectors, eigenbasis, and descriptions where they are kept."""
        basis = self.encoder.basis
        return self._vectors.bytes + basis.numel() * basis.dtype.itemsize + self._described_bytes

    def reload_basis(self) -> None:
        """Takes up the replay basis that lies beside the vectors, if one of this build does.

        Raises:
            IndexFormatError, DigestMismatchError: it is damaged.
        """
        found = ReplayBasis.load(self.folder / BASIS, self.about_basis())
        self.basis = None if found is None else found.to(self.device)
        self.calibration = Calibration.load(self.folder / CALIBRATION, self.about_calibration())

    def keep_calibration(self, found: Calibration) -> None:
        """Keeps what a check found beside the vectors, and takes it up."""
        replace_part(self.folder, "calibration", CALIBRATION, found.save)
        self.calibration = found

    def keep_basis(self, found: ReplayBasis) -> None:
        """Keeps a replay basis beside the vectors, and takes it up."""
        replace_part(self.folder, "replay_basis", BASIS, lambda path: found.save(path, self.about_basis()))
        self.reload_basis()

    def about_calibration(self) -> dict[str, str]:
        """What a calibration of this index, with its replay basis of now, belongs to."""
        return {**self.about_basis(), "basis": "" if self.basis is None else self.basis.digest}

    def about_basis(self) -> dict[str, str]:
        """What a replay basis of this index belongs to."""
        return {"build_digest": self.manifest.build_digest, "content_digest": self.manifest.content_digest}

    @property
    def tiers(self) -> dict[str, str]:
        """The tiers that this index answers now, with what is missing for the others."""
        if self.basis is None:
            return dict(self.manifest.tiers)
        return {**self.manifest.tiers, "replayed": f"available ({self.basis.width} directions)"}

    def describe(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """``example_id``, ``example_handle``, ``label``, ``source`` and ``fields`` of some rows, in the order asked."""
        found = self.table.take(rows, DESCRIPTION) if rows else []
        return [
            {**one, "example_id": self.example_ids[row], "label": self.labels[row], **self._resolved(row)}
            for row, one in zip(rows, found, strict=True)
        ]

    def resolve_from(self, examples: Sequence[Example]) -> None:
        """Shows what these examples say and where they are from, where the index itself keeps nothing of it."""
        self._source = {str(example["example_id"]): example for example in examples}

    def _resolved(self, row: int) -> dict[str, Any]:
        example = self._source.get(self.example_ids[row])
        if example is None:
            return {}
        return {"source": example.get("source"), "fields": {k: v for k, v in example.items() if k not in RESERVED}}

    def columns(self) -> list[str]:
        """What examples can be grouped by: the columns that every example has, and all of their metadata."""
        metadata = {name for one in self._texts("metadata") for name in one or {}}
        return [*GROUPING, *sorted(metadata - set(GROUPING))]

    def values_of(self, column: str) -> list[Any] | None:
        """Every example's value of one of ``columns``, in row order; ``None`` where there is no such column."""
        if column in GROUPING:
            return self.labels if column == "label" else self._texts(column)
        metadata = [one or {} for one in self._texts("metadata")]
        return [one.get(column) for one in metadata] if any(column in one for one in metadata) else None

    def _texts(self, column: str) -> list[Any]:
        if not self._source:
            return self.table.column(column)
        return [self._source.get(example_id, {}).get(column) for example_id in self.example_ids]

    def check_task(self, task: Task) -> None:
        """Refuses a task other than the one that the index was built with.

        Raises:
            DigestMismatchError: what describes the tasks differs.
        """
        if not matches_task(task, self.manifest.task):
            raise DigestMismatchError(
                f"the index in {self.folder} was built for the task {self.manifest.task}, not for "
                f"{describe_task(task)}",
                field="task",
            )

    def scores(self, encoded: Tensor, *, exact: bool = False, damping: float | None = None) -> Tensor:
        """Influence of every example on each query, ``[Q, N]``, in row order; positive supports.

        ``phi^T d theta / d w_i`` along the way of the weights, or ``-phi^T (G + lambda D)^-1 g_i a_i / Z`` at the final
        ones; in the eigenvectors of ``G``.

        Args:
            encoded: ``[Q, k]``, from the encoder.
            exact: Multiply in single precision instead of in the precision of the stored vectors.
            damping: ``lambda`` in place of the index's own, for choosing it by measurement.

        Raises:
            SettingsError: another damping of an index that follows the way of the weights and has none.
        """
        whitened = self._whitened(encoded, damping)
        return self._vectors.products(whitened, exact=exact) / self.manifest.scale * self._weights

    def scores_of(self, encoded: Tensor, rows: Tensor, *, damping: float | None = None) -> Tensor:
        """Influence of some rows on one query ``[k]``, in single precision, ``[rows]``."""
        whitened = self._whitened(encoded, damping)
        return (self._vectors[rows] @ whitened) / self.manifest.scale * self._weights[rows]

    def self_influences(self) -> Tensor:
        """By how much training with each example lowered its own loss, ``[N]``, at first order, double precision."""
        return torch.tensor(self.table.column("self_influence"), dtype=torch.float64)

    def _whitened(self, encoded: Tensor, damping: float | None) -> Tensor:
        if self.manifest.approximation != "final":
            if damping not in (None, self.manifest.damping):
                raise SettingsError("this index follows the way of the weights; it has no damping", field="damping")
            return encoded
        own = self.encoder.eigenvalues + self.manifest.damping
        if damping is None:
            return encoded / own.sqrt()
        # The stored vectors are whitened with the index's own damping; the query makes up for the difference.
        return encoded * (own.sqrt() / (self.encoder.eigenvalues + damping))

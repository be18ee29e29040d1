"""The training-gradient index: build, open, verify, search."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import pyarrow as pa
import torch
from torch import Tensor, nn

from influence_engine.errors import DigestMismatchError, IndexFormatError, SettingsError
from influence_engine.index.building.context import DEFAULT_OPTIONS, BuildOptions
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
from influence_engine.index.descriptions import ExampleDescriptions
from influence_engine.index.encoding.cuda_graph import GraphedEncoding
from influence_engine.index.encoding.encoder import Encoder
from influence_engine.index.file_sums import verify_files
from influence_engine.index.manifest import MANIFEST, Manifest
from influence_engine.index.parts import replace_part
from influence_engine.index.replay_basis import ReplayBasis
from influence_engine.index.resident import ResidentVectors
from influence_engine.index.settings import IndexSettings
from influence_engine.index.store import ExampleTable
from influence_engine.models.loading import model_digest
from influence_engine.options import with_defaults
from influence_engine.progress import Progress, silent
from influence_engine.resources import choose_device
from influence_engine.tasks import Example, Task, describe_task, matches_task
from influence_engine.training import Run, in_recorded_order
from influence_engine.training.identity import check_examples, data_digests, task_digests

BASIS = "replay.safetensors"
"""File of the replay basis in a version's folder; optional, and made after the version."""

CALIBRATION = "calibration.json"
"""File of the calibration in a version's folder; optional, and made after the version."""


class InfluenceIndex:
    """One opened version of an index; its vectors are resident on one device.

    Attributes:
        folder: The version's folder.
        manifest: What the version was built from, and how.
        device: Where the vectors are.
        encoder: Turns layer gradients into queries' vectors.
        encode_with_share: ``Encoder.encode_with_share``, on a GPU by one launch for a single query.
        table: The training examples.
        labels: The examples' labels, in row order.
        example_ids: The examples' ids, in row order.
        basis: The replay basis, where there is one.
        calibration: The calibration, where there is one.
    """

    def __init__(self, folder: Path, manifest: Manifest, device: torch.device, key: bytes | None = None) -> None:
        self.folder = folder
        self.manifest = manifest
        self.device = device
        self.encoder = Encoder.load(folder / ENCODER).to(device).packed()
        self.encode_with_share = GraphedEncoding(self.encoder.encode_with_share)
        self.store_examples: StoreExamples = manifest.settings.get("store_examples", "inline")
        self.table = ExampleTable(folder / TABLE, contents_for(self.store_examples, key))
        self._vectors = ResidentVectors.read(self.table, device)
        self._weights = torch.tensor(self.table.column("weight"), device=device)
        if self._vectors.shape != (manifest.rows, manifest.dimensions):
            raise IndexFormatError(
                f"{folder / TABLE} holds vectors {self._vectors.shape}, the manifest says "
                f"({manifest.rows}, {manifest.dimensions})",
                field=str(folder),
            )
        self._descriptions = ExampleDescriptions(self.table, inline=self.store_examples == "inline")
        self.labels, self.example_ids = self._descriptions.labels, self._descriptions.example_ids
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
        **options: Unpack[BuildOptions],
    ) -> InfluenceIndex:
        """Builds an index for a model whose training was not recorded, and opens it.

        The optimiser is taken to be Adam or AdamW, whose preconditioner is estimated; ``settings.metric`` can say
        otherwise.

        Args:
            model: The fine-tuned model; ``requires_grad`` marks the parameters that were trained.
            task: The model's task.
            train: The model's training examples.
            path: Folder of the index and its versions.
            settings: How to build; the defaults are good ones.
            base: The model before fine-tuning, where it is known: training is taken to have followed the linear path
                from its weights, for a time that is estimated from their distance; the manifest holds its digest.
            options: The keyword arguments of ``BuildOptions``:

                * ``held_out``: examples that were not trained on; how much of their gradients the index keeps tells
                  later which queries lie outside what it represents.
                * ``key``: 32 bytes, for an index that encrypts its examples.
                * ``device``: where to build and open; ``auto``, the default, is the GPU where there is one.
                * ``progress``: called after every batch.

        Raises:
            DataError: no examples, or ids missing or doubled.
            ModelError: layers without per-example gradients, or a gradient that is not finite.
            SettingsError: a setting that does not go with the model.
            ResourceError: too little disk or memory; the message says which smaller settings would fit.
            TypeError: an unknown keyword argument.
        """
        chosen = with_defaults(cls.build, DEFAULT_OPTIONS, options)
        check_examples(task, train, "training")
        digests = {
            **data_digests(task, train),
            "model": model_digest(model),
            "base": None if base is None else model_digest(base),
            **task_digests(task),
        }
        provenance = Provenance(digests, base=base)
        return cls._built(model, task, train, path, settings, provenance, chosen)

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
        **options: Unpack[BuildOptions],
    ) -> InfluenceIndex:
        """Builds an index from a recorded run, with the recorded preconditioner and damping, and opens it.

        Args:
            run: The run, or its folder.
            task: The task that the run was recorded with.
            train: The examples that the run was trained on, in any order; the index has them in the recorded order.
            path: Folder of the index and its versions.
            settings: How to build; the defaults are good ones.
            into: For a model that is not from ``transformers``: a freshly built one, which receives the run's weights.
            options: ``held_out``, ``key``, ``device`` and ``progress``, as ``build`` describes them.

        Raises:
            DigestMismatchError: data or task are not the recorded ones.
            TypeError: an unknown keyword argument.
            ModelError, SettingsError, ResourceError: as for ``build``.
        """
        chosen = with_defaults(cls.build_from_run, DEFAULT_OPTIONS, options)
        opened = run if isinstance(run, Run) else Run.open(run)
        examples = in_recorded_order(opened, task, train)
        model = opened.load_model(into)
        provenance = Provenance.of(opened)
        return cls._built(model, task, examples, path, settings, provenance, chosen)

    @classmethod
    def _built(
        cls,
        model: nn.Module,
        task: Task,
        train: Sequence[Example],
        path: str | os.PathLike[str],
        settings: IndexSettings | None,
        provenance: Provenance,
        options: BuildOptions,
    ) -> InfluenceIndex:
        model, settings = model.to(choose_device(options["device"])), settings or IndexSettings()
        build_version(model, task, train, Path(path), settings, provenance, options)
        return cls.open(path, key=options["key"], device=options["device"])

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
        """Opens the current version, or the one named, after checking its files; without sums of them, its rows.

        Args:
            path: Folder of the index.
            version: Name of a version; by default the one in ``CURRENT``.
            model_digest: Digest of the model that the index will be used with; not compared if left out.
            key: The key that examples are encrypted with, where they are; without it, their fields are empty.
            device: Where the vectors go.

        Raises:
            IndexFormatError: there is no index, or its format is not known here.
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
        complete = verify_files(folder)
        chosen = choose_device(device)
        try:
            opened = cls(folder, Manifest.read(folder / MANIFEST), chosen, key)
            if not complete:
                opened.verify_rows()
        except (pa.ArrowException, OSError, ValueError) as error:  # as Lance and pyarrow say it
            raise IndexFormatError(
                f"{folder / TABLE} cannot be read ({type(error).__name__}). Restore it, or build the index again",
                field=str(folder / TABLE),
            ) from error
        return opened

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
        """Predicts the cost of building from the recorded ``run``, or for a model whose ``base`` may be known."""
        provenance = Provenance({}, base=base) if run is None else Provenance.of(run)
        return predict_build(model, task, train, settings or IndexSettings(), provenance)

    def verify(self, progress: Progress = silent) -> None:
        """Reads every file and row again and compares their digests; ``progress`` is called after every file.

        Raises:
            DigestMismatchError: a file or a row has changed since the index was built.
        """
        verify_files(self.folder, progress)
        self.verify_rows()

    def verify_rows(self) -> None:
        """Reads every row and compares the digest of them all.

        Raises:
            DigestMismatchError: a row has changed since the index was built.
        """
        found = self.table.content_digest()
        if found != self.manifest.content_digest:
            raise DigestMismatchError(
                f"{self.folder / TABLE} has changed since it was built: its content digest is {found}, the manifest "
                f"says {self.manifest.content_digest}",
                field=str(self.folder / TABLE),
            )

    def inspect(self) -> dict[str, Any]:
        """The manifest with the available tiers, the calibration, and the disk and memory that the index takes."""
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
        """Bytes of memory that grow with the index: vectors, eigenbasis, and descriptions where they are cached."""
        basis = self.encoder.basis
        return self._vectors.bytes + basis.numel() * basis.dtype.itemsize + self._descriptions.cached_bytes

    def reload_basis(self) -> None:
        """Loads the replay basis and the calibration from the version's folder, where they are of this build.

        Raises:
            IndexFormatError, DigestMismatchError: one of them is damaged.
        """
        found = ReplayBasis.load(self.folder / BASIS, self.about_basis())
        self.basis = None if found is None else found.to(self.device)
        self.calibration = Calibration.load(self.folder / CALIBRATION, self.about_calibration())

    def save_calibration(self, found: Calibration) -> None:
        """Stores a calibration in the version's folder, and uses it from now on."""
        replace_part(self.folder, "calibration", CALIBRATION, found.save)
        self.calibration = found

    def save_basis(self, found: ReplayBasis) -> None:
        """Stores a replay basis in the version's folder, and uses it from now on."""
        replace_part(self.folder, "replay_basis", BASIS, lambda path: found.save(path, self.about_basis()))
        self.reload_basis()

    def about_calibration(self) -> dict[str, str]:
        """Digests that identify this index with its present replay basis, for a calibration."""
        return {**self.about_basis(), "basis": "" if self.basis is None else self.basis.digest}

    def about_basis(self) -> dict[str, str]:
        """Digests that identify this index, for a replay basis."""
        return {"build_digest": self.manifest.build_digest, "content_digest": self.manifest.content_digest}

    @property
    def tiers(self) -> dict[str, str]:
        """Each tier with ``available``, or what is missing for it."""
        if self.basis is None:
            return dict(self.manifest.tiers)
        return {**self.manifest.tiers, "replayed": f"available ({self.basis.width} directions)"}

    def describe(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """``example_id``, ``example_handle``, ``label``, ``source`` and ``fields`` of rows, in the given order."""
        return self._descriptions.describe(rows)

    def row_of(self, handle: str) -> int | None:
        """The row of the example with this handle; ``None`` where there is none."""
        return self._descriptions.row_of(handle)

    def resolve_from(self, examples: Sequence[Example]) -> None:
        """Describes the rows by these examples from now on, for an index that does not store texts itself."""
        self._descriptions.give(examples)

    def columns(self) -> list[str]:
        """Names by which examples can be grouped: columns of every example, and the keys of their metadata."""
        return self._descriptions.columns()

    def values_of(self, column: str) -> list[Any] | None:
        """Every example's value of one of ``columns()``, in row order; ``None`` where there is no such column."""
        return self._descriptions.values_of(column)

    def check_task(self, task: Task) -> None:
        """Refuses a task other than the one that the index was built with.

        Raises:
            DigestMismatchError: the descriptions of the tasks differ.
        """
        if not matches_task(task, self.manifest.task):
            raise DigestMismatchError(
                f"the index in {self.folder} was built for the task {self.manifest.task}, not for "
                f"{describe_task(task)}",
                field="task",
            )

    def scores(self, encoded: Tensor, *, exact: bool = False, damping: float | None = None) -> Tensor:
        """Influence of every example on each query, ``[Q, N]``, in row order; positive for a proponent.

        ``phi^T d theta / d w_i`` along the training trajectory (``index.unrolling``), or at the final weights
        ``-phi^T (G + lambda D)^-1 g_i a_i / Z`` (Koh and Liang 2017, eq. 2, with the damped GGN; ``curvature.dual`` has
        the symbols). Both in the eigenvectors of ``G``.

        Args:
            encoded: ``phi [Q, k]``, from the encoder.
            exact: Whether to multiply in single precision instead of in the type of the stored vectors.
            damping: ``lambda`` in place of the index's own, for choosing it by measurement.

        Raises:
            SettingsError: a damping for an index along the trajectory, which has none.
        """
        whitened = self._whitened(encoded, damping)
        return self._vectors.products(whitened, exact=exact) / self.manifest.scale * self._weights

    def scores_of(self, encoded: Tensor, rows: Tensor, *, damping: float | None = None) -> Tensor:
        """Influence of the examples in ``rows`` on one query ``[k]``, in single precision, ``[rows]``."""
        whitened = self._whitened(encoded, damping)
        return (self._vectors[rows] @ whitened) / self.manifest.scale * self._weights[rows]

    def self_influences(self) -> Tensor:
        """How much lower each example's own loss is because it was in training, ``[N]``, to first order, float64."""
        return torch.tensor(self.table.column("self_influence"), dtype=torch.float64)

    def _whitened(self, encoded: Tensor, damping: float | None) -> Tensor:
        if self.manifest.approximation != "final":
            if damping not in (None, self.manifest.damping):
                raise SettingsError("this index follows the training trajectory; it has no damping", field="damping")
            return encoded
        own = self.encoder.eigenvalues + self.manifest.damping
        if damping is None:
            return encoded / own.sqrt()
        # The stored vectors are whitened with the index's own damping; the query's factor corrects the difference.
        return encoded * (own.sqrt() / (self.encoder.eigenvalues + damping))

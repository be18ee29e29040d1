"""From a model and its training examples to a published index version."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from influence_engine.curvature import Metric, adam_metric, heuristic_damping, identity_metric
from influence_engine.curvature.gradient_passes import GradientPasses
from influence_engine.digests import file_digest
from influence_engine.errors import IndexFormatError, SettingsError
from influence_engine.files import remove_tree, write_text
from influence_engine.gradients import TrackedLayers, track
from influence_engine.index.building.approximation import Approximation, approximation_of, where_the_way_is_known
from influence_engine.index.building.build_digest import build_digests
from influence_engine.index.building.cost_estimate import BuildPlan, plan_build
from influence_engine.index.building.estimated_training import stand_in
from influence_engine.index.building.provenance import Provenance
from influence_engine.index.building.resource_check import Room
from influence_engine.index.building.retention import RETAINED, measured_retention
from influence_engine.index.building.row_blocks import ROWS
from influence_engine.index.building.stages import Follower, IndexBuilder
from influence_engine.index.building.write_table import Rotation, Stages, write_vectors
from influence_engine.index.contents import Contents, contents_for
from influence_engine.index.encoding.encoder import LayerCoordinates
from influence_engine.index.known_parts import KNOWN_PARTS
from influence_engine.index.manifest import MANIFEST, LayerSummary, Manifest
from influence_engine.index.parts import PartContext, add_parts
from influence_engine.index.settings import IndexSettings
from influence_engine.index.unrolling.recorded_steps import RecordedSteps
from influence_engine.index.unrolling.source_segments import Segments
from influence_engine.index.unrolling.trajectory import recorded_way, starting_weights, straight_way
from influence_engine.progress import Progress, silent
from influence_engine.resources import out_of_disk, out_of_memory, release_memory
from influence_engine.tasks import Example, Task, describe_task
from influence_engine.training.identity import check_examples, versions
from influence_engine.training.step import trained_parameters

CURRENT = "CURRENT"
VERSIONS = "versions"
TABLE = "examples.lance"
ENCODER = "encoder.safetensors"
TRAINING = "training.safetensors"
"""What was estimated of a training without a record, until the index is complete."""

NAME = 16
"""Digits of its digest that a version is named by."""

_BASIS_DTYPES = {"float16": torch.bfloat16, "float32": torch.float32}
"""A basis is only multiplied by, which processors do in bfloat16; vectors are ranked too, and keep more digits."""


def passes_for(model: nn.Module, task: Task, settings: IndexSettings) -> GradientPasses:
    """The passes that an index of these settings is built with."""
    tracked = track(model, allow_left_out=settings.unsupported_layers == "leave_out")
    return GradientPasses(
        model,
        task,
        tracked,
        batch_tokens=settings.batch_tokens,
        draws=settings.curvature_draws,
        seed=settings.seed,
    )


def predict_build(
    model: nn.Module, task: Task, examples: Sequence[Example], settings: IndexSettings, provenance: Provenance
) -> BuildPlan:
    """Time, disk and memory that building will take, from a few probed batches."""
    check_examples(task, examples, "training")
    return plan_build(passes_for(model, task, settings), examples, settings, approximation_of(settings, provenance))


def build_version(
    model: nn.Module,
    task: Task,
    examples: Sequence[Example],
    path: Path,
    settings: IndexSettings,
    provenance: Provenance,
    held_out: Sequence[Example],
    progress: Progress = silent,
    *,
    key: bytes | None = None,
) -> Path:
    """Builds a version of an index below ``path`` and makes it current; returns its folder.

    A build that was killed goes on where it was. A version that is already there, built from the same things, is kept.

    Raises:
        ModelError: layers that cannot be attributed, or a gradient that is not finite.
        ResourceError: too little disk or memory; the message says what would fit.
        SettingsError: the index is to be encrypted and there is no key, or another setting cannot be had.
    """
    contents = contents_for(settings.store_examples, key)
    contents.seal("", "", "")  # without its key a build would fail at its very end
    passes, approximation = passes_for(model, task, settings), approximation_of(settings, provenance)
    digests = build_digests(passes, settings, provenance, approximation)
    built = [digest for digest in digests if (path / VERSIONS / digest[:NAME] / MANIFEST).exists()]
    digest = (built or digests)[0]
    working = path / "building" / digest[:NAME]
    room = Room(passes, examples, settings, approximation, working)
    try:
        return _version(room, digest, contents, path, provenance, held_out, progress)
    except Exception as error:
        no_disk = out_of_disk(error)
        if no_disk is None and not out_of_memory(error):
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0]
    # Here, since the error held on to the tensors of where it was raised.
    release_memory()
    if no_disk is None:
        raise room.memory_ran_out(said)
    # What is begun anew in any case has no need to stay on a full disk.
    remove_tree(working / TABLE)
    for block in working.glob(f"{ROWS}*"):
        block.unlink()
    raise room.disk_ran_out(no_disk)


def _version(
    room: Room,
    digest: str,
    contents: Contents,
    path: Path,
    provenance: Provenance,
    held_out: Sequence[Example],
    progress: Progress,
) -> Path:
    passes, examples, settings = room.passes, room.examples, room.settings
    task, working = passes.task, room.working
    final = path / VERSIONS / working.name
    if not (final / MANIFEST).exists() and not (working / MANIFEST).exists():
        room.require()
        training = _of_training(room, provenance, progress)
        approximation = where_the_way_is_known(room.approximation, settings, training.damping is not None)
        working.mkdir(parents=True, exist_ok=True)
        follow = _follow(room, approximation, provenance, training, progress)
        builder = IndexBuilder(passes, examples, training.metric, settings, working, progress, follow)
        coordinates = builder.layers()
        basis = builder.basis(coordinates)
        gradients = builder.vectors(coordinates, basis["basis"])
        stages = Stages(gradients, builder.responses(coordinates, basis["basis"], gradients))
        rotation = Rotation.of(basis["ggn"])
        of_one_step = training.damping or heuristic_damping(rotation.eigenvalues)
        damping = 0.0 if approximation.steps else of_one_step
        source = "heuristic" if training.damping is None else training.source
        encoder = rotation.encoder(coordinates, basis["basis"], _BASIS_DTYPES[settings.dtype])
        del basis["basis"]  # the encoder holds what is left of it
        encoder.save(working / ENCODER)
        retention = passes.within_memory(
            lambda: measured_retention(passes, encoder, of_one_step, examples, held_out, settings.seed, progress),
            lambda note: progress(RETAINED, 0, 1, note),
        )
        dimensions, size = encoder.basis.shape
        layers = _summaries(passes.tracked, coordinates)
        del encoder, coordinates
        release_memory()
        content, scale = write_vectors(
            working / TABLE,
            stages,
            rotation,
            damping,
            examples,
            label=getattr(task, "label", "label"),
            dtype=settings.dtype,
            contents=contents,
            progress=progress,
        )
        manifest = Manifest(
            build_digest=digest,
            content_digest=content,
            digests=provenance.digests,
            settings=settings.model_dump(mode="json"),
            rows=len(examples),
            dimensions=dimensions,
            coordinates=size,
            approximation=approximation.name,
            scale=scale,
            damping=damping,
            damping_source="none" if approximation.steps else source,
            metric=training.metric_name,
            energy_kept=float(basis["kept"]),
            retained=retention.gradients,
            influence_kept=retention.influence,
            layers=layers,
            left_out=dict(passes.tracked.left_out),
            tiers=provenance.tiers(approximation.name),
            task=describe_task(task),
            versions=versions(),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            files={ENCODER: file_digest(working / ENCODER)},
        )
        manifest.write(working / MANIFEST)
    if (working / MANIFEST).exists():  # complete, and maybe killed before it was published
        for stage in working.glob("*.safetensors"):
            if stage.name != ENCODER:
                stage.unlink()
        add_parts(working, KNOWN_PARTS, PartContext(passes.model, task, examples, progress))
        final.parent.mkdir(parents=True, exist_ok=True)
        remove_tree(final)
        working.rename(final)
    write_text(path / CURRENT, final.name + "\n")
    return final


def current_version(path: str | os.PathLike[str]) -> str:
    """Name of the version that is current.

    Raises:
        IndexFormatError: there is no index at ``path``, or only one that is still being built.
    """
    pointer = Path(path) / CURRENT
    if pointer.is_file():
        return pointer.read_text(encoding="utf-8").strip()
    unfinished = (Path(path) / "building").is_dir()
    state = "holds an unfinished build; go on with" if unfinished else "holds no index; make one with"
    raise IndexFormatError(f"{path} {state}: bento-audit index build", field=str(path))


@dataclass(frozen=True)
class _Training:
    """What is known of the training, or estimated.

    Attributes:
        metric: The optimiser's, on the device.
        metric_name: How it was had.
        damping: ``1 / time`` in that metric; ``None`` where nothing says it.
        source: How it was had.
    """

    metric: Metric
    metric_name: str
    damping: float | None
    source: str


def _of_training(room: Room, provenance: Provenance, progress: Progress) -> _Training:
    passes, settings, moments = room.passes, room.settings, provenance.second_moments
    if settings.metric == "adam" and moments is None and provenance.record is not None:
        raise SettingsError(
            "index.metric is 'adam', but the recorded optimiser has no second moments; use 'auto' or 'identity'",
            field="index.metric",
        )
    metric: Metric
    if provenance.record is None and moments is None:
        adam = settings.metric != "identity"
        base = None if settings.damping is not None else provenance.base
        if adam or base is not None:
            room.working.mkdir(parents=True, exist_ok=True)
            kept = room.working / TRAINING
            found = stand_in(passes, room.examples, base, kept, progress, adam=adam, seed=settings.seed)
            metric, damping, source = found.metric, found.damping, "displacement"
        else:
            metric, damping, source = identity_metric(passes.tracked), None, ""
        name = "adam, estimated" if adam else "identity"
    else:
        damping, source = provenance.damping, "record"
        if settings.metric == "identity" or moments is None:
            name, metric = "identity", identity_metric(passes.tracked)
        else:
            name, metric = "adam", adam_metric(passes.tracked, moments, provenance.epsilon)
    on_device = {layer: one.to(passes.device) for layer, one in metric.items()}
    if settings.damping is not None:
        damping, source = settings.damping, "settings"
    return _Training(on_device, name, damping, source)


def _follow(
    room: Room, approximation: Approximation, provenance: Provenance, training: _Training, progress: Progress
) -> Callable[[list[int]], Follower] | None:
    """What follows the way of the weights, of the positions in the sample."""
    passes, examples, settings, record = room.passes, room.examples, room.settings, approximation.record
    if approximation.steps is not None:
        steps = RecordedSteps(
            approximation.steps, passes, examples, settings.hessian_directions, room.working, progress
        )
        return lambda sample: steps
    if not approximation.segments or training.damping is None:
        return None
    time, count = 1.0 / training.damping, approximation.segments
    if record is not None:
        points = recorded_way(record, time, count, passes.device)
    else:
        assert provenance.base is not None  # else there would be no way to follow
        start = starting_weights(passes.tracked, passes.model, provenance.base)
        points = straight_way(start, trained_parameters(passes.model, list(start)), time, count)
    return lambda sample: Segments(passes, examples, points, sample, room.working, progress)


def _summaries(tracked: TrackedLayers, coordinates: LayerCoordinates) -> list[LayerSummary]:
    summaries = []
    for layer in tracked.layers:
        projection = coordinates.projections.get(layer.name)
        ranks = (projection.left.shape[-1], projection.right.shape[-1]) if projection else (0, 0)
        summaries.append(LayerSummary(name=layer.name, shape=layer.shape, ranks=ranks))
    return summaries

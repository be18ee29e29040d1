"""From a model and its training examples to a published index version: the order of the stages."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from influence_engine.curvature import (
    Preconditioner,
    adam_preconditioner,
    heuristic_damping,
    identity_preconditioner,
)
from influence_engine.curvature.gradient_passes import GradientPasses
from influence_engine.digests import file_digest
from influence_engine.errors import IndexFormatError, SettingsError
from influence_engine.files import remove_tree, write_text
from influence_engine.gradients import TrackedLayers, track
from influence_engine.index.building.approximation import approximation_of, unless_length_unknown
from influence_engine.index.building.build_digest import build_digests
from influence_engine.index.building.context import BuildContext, BuildOptions
from influence_engine.index.building.cost_estimate import BuildPlan, plan_build
from influence_engine.index.building.estimated_training import estimate_training
from influence_engine.index.building.provenance import Provenance
from influence_engine.index.building.resource_check import ResourceCheck
from influence_engine.index.building.retention import measured_retention
from influence_engine.index.building.row_blocks import ROWS
from influence_engine.index.building.stages import IndexBuilder, Unrolling
from influence_engine.index.building.write_table import Rotation, StageFiles, write_vectors
from influence_engine.index.contents import contents_for
from influence_engine.index.encoding.encoder import LayerCoordinates
from influence_engine.index.known_parts import KNOWN_PARTS
from influence_engine.index.manifest import MANIFEST, LayerSummary, Manifest
from influence_engine.index.parts import PartContext, add_parts
from influence_engine.index.settings import IndexSettings
from influence_engine.index.unrolling.recorded_steps import RecordedSteps
from influence_engine.index.unrolling.source_segments import SourceSegments
from influence_engine.index.unrolling.trajectory import initial_weights, linear_path, recorded_trajectory
from influence_engine.resources import out_of_disk, out_of_memory, release_memory
from influence_engine.tasks import Example, Task, describe_task
from influence_engine.training.identity import check_examples, versions
from influence_engine.training.step import trained_parameters

CURRENT = "CURRENT"
VERSIONS = "versions"
TABLE = "examples.lance"
ENCODER = "encoder.safetensors"

NAME = 16
"""Digits of the build digest in a version's name."""

_BASIS_DTYPES = {"float16": torch.bfloat16, "float32": torch.float32}
"""Type of the encoder's basis by the type of the vectors.

Processors multiply in bfloat16, which suffices for a basis; vectors are ranked by their products, and need more digits.
"""


def passes_for(model: nn.Module, task: Task, settings: IndexSettings) -> GradientPasses:
    """The gradient passes that an index with these settings is built with."""
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
    """Predicts the time, disk and memory of a build from a few probed batches."""
    check_examples(task, examples, "training")
    return plan_build(passes_for(model, task, settings), examples, settings, approximation_of(settings, provenance))


def build_version(
    model: nn.Module,
    task: Task,
    examples: Sequence[Example],
    path: Path,
    settings: IndexSettings,
    provenance: Provenance,
    options: BuildOptions,
) -> Path:
    """Builds a version of an index below ``path`` and makes it current; returns its folder.

    A build that was interrupted goes on where it was. A version that is already there, with the same build digest, is
    not built again.

    Args:
        model: The fine-tuned model, on the device to build on.
        task: The model's task.
        examples: The training examples, in the order of the index's rows.
        path: The index.
        settings: How to build.
        provenance: What is known of the training.
        options: All of ``BuildOptions``; ``device`` is not read.

    Raises:
        ModelError: layers without per-example gradients, or a gradient that is not finite.
        ResourceError: too little disk or memory; the message says which smaller settings would fit.
        SettingsError: the index is to be encrypted and there is no key, or another setting cannot be had.
    """
    contents = contents_for(settings.store_examples, options["key"])
    contents.seal("", "", "")  # without its key a build would fail only at its very end
    passes, approximation = passes_for(model, task, settings), approximation_of(settings, provenance)
    digests = build_digests(passes, settings, provenance, approximation)
    built = [digest for digest in digests if (path / VERSIONS / digest[:NAME] / MANIFEST).exists()]
    digest = (built or digests)[0]
    context = BuildContext(
        passes=passes,
        examples=examples,
        settings=settings,
        provenance=provenance,
        approximation=approximation,
        folder=path / "building" / digest[:NAME],
        contents=contents,
        held_out=options["held_out"],
        progress=options["progress"],
    )
    check = ResourceCheck(context)
    try:
        return _version(context, check, digest, path)
    except Exception as error:
        no_disk = out_of_disk(error)
        if no_disk is None and not out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    # Outside of the except clause, since the error holds on to the tensors of the frames that it was raised in.
    release_memory()
    if no_disk is None:
        raise check.memory_ran_out(reason)
    # Files that the next build would write anew in any case need not stay on a full disk.
    remove_tree(context.folder / TABLE)
    for block in context.folder.glob(f"{ROWS}*"):
        block.unlink()
    raise check.disk_ran_out(no_disk)


def _version(context: BuildContext, check: ResourceCheck, digest: str, path: Path) -> Path:
    """Builds the version unless it is there, and makes it current."""
    passes, examples, settings, provenance = context.passes, context.examples, context.settings, context.provenance
    task, working = passes.task, context.folder
    final = path / VERSIONS / working.name
    if not (final / MANIFEST).exists() and not (working / MANIFEST).exists():
        check.require()
        training = _training_of(context)
        approximation = unless_length_unknown(context.approximation, settings, known=training.damping is not None)
        context = replace(context, approximation=approximation)
        working.mkdir(parents=True, exist_ok=True)
        builder = IndexBuilder(context, training.preconditioner, _unrolling(context, training))
        coordinates = builder.layers()
        basis = builder.basis(coordinates)
        gradients = builder.vectors(coordinates, basis["basis"])
        stages = StageFiles(gradients, builder.sensitivities(coordinates, basis["basis"], gradients))
        rotation = Rotation.of(basis["ggn"])
        of_one_step = training.damping or heuristic_damping(rotation.eigenvalues)
        damping = 0.0 if approximation.steps else of_one_step
        source = "heuristic" if training.damping is None else training.source
        encoder = rotation.encoder(coordinates, basis["basis"], _BASIS_DTYPES[settings.dtype])
        del basis["basis"]  # the encoder has a rotated copy
        encoder.save(working / ENCODER)
        retention = measured_retention(context, encoder, of_one_step)
        dimensions, size = encoder.basis.shape
        layers = _summaries(passes.tracked, coordinates)
        del encoder, coordinates
        release_memory()
        content, scale = write_vectors(context, working / TABLE, stages, rotation, damping)
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
            training_time=None if training.damping is None else 1.0 / training.damping,
            metric=training.preconditioner_name,
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
        add_parts(working, KNOWN_PARTS, PartContext(passes.model, task, examples, context.progress))
        final.parent.mkdir(parents=True, exist_ok=True)
        remove_tree(final)
        working.rename(final)
    write_text(path / CURRENT, final.name + "\n")
    return final


def current_version(path: str | os.PathLike[str]) -> str:
    """Name of the index's current version.

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
    """Preconditioner and damping of the training, recorded or estimated.

    Attributes:
        preconditioner: The optimiser's, on the model's device.
        preconditioner_name: ``Manifest.metric``.
        damping: One over the length of the training, in preconditioned coordinates; ``None`` where it is not known.
        source: ``Manifest.damping_source``.
    """

    preconditioner: Preconditioner
    preconditioner_name: str
    damping: float | None
    source: str


def _training_of(context: BuildContext) -> _Training:
    passes, settings, provenance = context.passes, context.settings, context.provenance
    moments = provenance.second_moments
    if settings.metric == "adam" and moments is None and provenance.record is not None:
        raise SettingsError(
            "index.metric is 'adam', but the recorded optimiser has no second moments; use 'auto' or 'identity'",
            field="index.metric",
        )
    preconditioner: Preconditioner
    if provenance.record is None and moments is None:
        adam = settings.metric != "identity"
        base = None if settings.damping is not None else provenance.base
        if adam or base is not None:
            found = estimate_training(context, base, adam=adam)
            preconditioner, damping, source = found.preconditioner, found.damping, "displacement"
        else:
            preconditioner, damping, source = identity_preconditioner(passes.tracked), None, ""
        name = "adam, estimated" if adam else "identity"
    else:
        damping, source = provenance.damping, "record"
        if settings.metric == "identity" or moments is None:
            name, preconditioner = "identity", identity_preconditioner(passes.tracked)
        else:
            name, preconditioner = "adam", adam_preconditioner(passes.tracked, moments, provenance.epsilon)
    on_device = {layer: one.to(passes.device) for layer, one in preconditioner.items()}
    if settings.damping is not None:
        damping, source = settings.damping, "settings"
    return _Training(on_device, name, damping, source)


def _unrolling(context: BuildContext, training: _Training) -> Callable[[list[int]], Unrolling] | None:
    """Makes the unrolling of the training from the positions of the sampled examples; none for ``final``."""
    passes, examples, folder, progress = context.passes, context.examples, context.folder, context.progress
    approximation, record = context.approximation, context.approximation.record
    if approximation.steps is not None:
        directions = context.settings.hessian_directions
        steps = RecordedSteps(approximation.steps, passes, examples, directions, folder, progress)
        return lambda sample: steps
    if not approximation.segments or training.damping is None:
        return None
    time, count = 1.0 / training.damping, approximation.segments
    if record is not None:
        points = recorded_trajectory(record, time, count, passes.device)
    else:
        base = context.provenance.base
        assert base is not None  # else approximation_of would not have chosen segments
        start = initial_weights(passes.tracked, passes.model, base)
        points = linear_path(start, trained_parameters(passes.model, list(start)), time, count)
    return lambda sample: SourceSegments(passes, examples, points, sample, folder, progress)


def _summaries(tracked: TrackedLayers, coordinates: LayerCoordinates) -> list[LayerSummary]:
    summaries = []
    for layer in tracked.layers:
        projection = coordinates.projections.get(layer.name)
        ranks = (projection.left.shape[-1], projection.right.shape[-1]) if projection else (0, 0)
        summaries.append(LayerSummary(name=layer.name, shape=layer.shape, ranks=ranks))
    return summaries

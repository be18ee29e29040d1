"""A recorded run on disk: all that executing its steps again takes, with a digest of every file.

Layout of a run's folder::

    manifest.json                        digests, settings, versions, whether the run can be replayed; written last
    steps.safetensors                    the schedule (rows, a_i, Z_t, learning rates, seeds), losses, clip factors
    examples.json                        example ids in recorded order: the rows that the schedule refers to
    checkpoints/step-NNNNNN.safetensors  trained weights and optimiser state after that step; step 0: before the first
    model/                               the fine-tuned model and its processor; of adapters, what they sit on in base/,
                                         on the disk once for all runs in one folder (hard links, by digest)
    run.json                             instead of the manifest while the run is not complete

``format_version`` is raised only by what older code would read wrongly. Entries that this code does not know are left
alone, and ``versions`` says what computed the run: it never decides whether the run is opened, reused or gone on with.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from influence_engine.digests import verify_folder
from influence_engine.errors import RecordError
from influence_engine.files import read_json
from influence_engine.models.loading import load_into, load_model, load_processor
from influence_engine.models.trainable import set_trainable
from influence_engine.training.checkpoints import read_checkpoint, read_tensors, saved_steps
from influence_engine.training.optimizers import (
    Optimizer,
    OptimizerState,
    Parameters,
    optimizer_from_description,
)
from influence_engine.training.schedule import Schedule, schedule_from
from influence_engine.training.settings import FinetuneSettings
from influence_engine.training.step import put_parameters

FORMAT = "bento-audit/run"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
INCOMPLETE = "run.json"
STEPS = "steps.safetensors"
EXAMPLES = "examples.json"
MODEL = "model"


class Run:
    """A complete recorded training run; a ``FinetuningResult``.

    Attributes:
        folder: The run's folder.
        manifest: The content of ``manifest.json``.
        schedule: Examples, their weights, learning rate and seed of every step.
        losses: The objective before each step, ``[T]``, float64; NaN where it is unknown.
        clip_factors: The factor by which clipping scaled each step's gradient, ``[T]``; NaN where it is unknown.
        example_ids: In recorded order: ``schedule.rows`` are rows of it.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        tensors = read_tensors(folder / STEPS)
        self.schedule: Schedule = schedule_from(tensors)
        self.losses: Tensor = tensors["losses"]
        self.clip_factors: Tensor = tensors["clip_factors"]
        self.example_ids: list[str] = read_json(folder / EXAMPLES)

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], *, verify: bool = True, meanwhile: Callable[[], object] | None = None
    ) -> Run:
        """Opens a run, after checking the digest of every file of it.

        Args:
            folder: The run's folder.
            verify: False trusts the files, for a caller that has just written or verified them.
            meanwhile: Done while the files are read, as ``verify_folder`` describes it.

        Raises:
            RecordError: there is no complete run of a known format.
            DigestMismatchError: a file is missing or has changed; the message names it.
        """
        folder = Path(folder)
        if not (folder / MANIFEST).is_file():
            raise RecordError(_why_no_run(folder), field=str(folder))
        manifest = read_json(folder / MANIFEST)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise RecordError(f"{folder / MANIFEST} does not describe a recorded run", field=str(folder))
        check_format_version(manifest, folder)
        if verify:
            verify_folder(folder, manifest["files"], meanwhile=meanwhile)
        return cls(folder, manifest)

    @property
    def settings(self) -> FinetuneSettings | None:
        """The settings that ``finetune`` was called with; None for a run of another trainer."""
        found = self.manifest["settings"]
        return None if found is None else FinetuneSettings.model_validate(found)

    @property
    def learning_rates(self) -> Tensor:
        """Learning rate of each step, ``[T]``, float64."""
        return self.schedule.learning_rates

    @property
    def clipped_learning_rates(self) -> Tensor:
        """``learning_rates`` times ``clip_factors``, since clipping shortens a step; unknown factors count as 1."""
        return self.learning_rates * self.clip_factors.nan_to_num(1.0)

    @property
    def trainable(self) -> list[str]:
        """Names of the trained parameters, in the model's order."""
        return list(self.manifest["trainable"])

    @property
    def digests(self) -> dict[str, str | None]:
        """Digests of ``model``, ``base``, ``data``, ``task`` and, under ``tokenizer``, of the processor (or None).

        ``inputs`` is there for data that are more than their fields say: see ``tasks.content_digest``.
        """
        return dict(self.manifest["digests"])

    @property
    def replayable(self) -> bool:
        """Whether executing the recorded steps again leads to the recorded weights."""
        return bool(self.manifest["replayable"])

    @property
    def why_not_replayable(self) -> str | None:
        """Why the recorded steps cannot be executed again, in words; None for a run that can be replayed."""
        return self.manifest["why_not_replayable"]

    def require_replayable(self, what: str = "executed again") -> None:
        """Refuses a run whose recorded steps do not lead to the recorded weights.

        Args:
            what: What was to be done with the run, for the message.

        Raises:
            RecordError: the run cannot be replayed; the message says why.
        """
        if not self.replayable:
            raise RecordError(f"the run in {self.folder} cannot be {what}: {self.why_not_replayable}")

    @property
    def optimizer(self) -> Optimizer:
        """The optimiser whose steps the run consists of.

        Raises:
            RecordError: it is of another type, whose steps cannot be executed again.
        """
        return optimizer_from_description(self.manifest["optimizer"])

    @property
    def epsilon(self) -> float | None:
        """AdamW's epsilon, in the units of a gradient; None for SGD and optimisers unknown here."""
        found = self.manifest["optimizer"].get("epsilon")
        return None if found is None else float(found)

    @property
    def max_grad_norm(self) -> float | None:
        """The global norm to which longer gradients were scaled down; None for a run without clipping."""
        return self.manifest["max_grad_norm"]

    @property
    def dropout(self) -> float:
        """Probability of dropout during the run."""
        return float(self.manifest["dropout"])

    @property
    def first_position(self) -> bool:
        """Whether the steps left out what the model's head does not read (``first_position_only``)."""
        return bool(self.manifest.get("first_position", False))

    @property
    def weights(self) -> dict[str, float]:
        """The ``w_i`` that were not 1, by example id."""
        return dict(self.manifest["weights"])

    @property
    def validation(self) -> dict[str, float] | None:
        """On the validation examples: ``examples``, mean ``loss`` and, for classifiers, ``accuracy``."""
        return self.manifest["validation"]

    @property
    def checkpoints(self) -> list[int]:
        """The steps after which weights and optimiser state were saved, from 0 to the last."""
        return list(self.manifest["checkpoints"])

    def checkpoint(self, step: int) -> tuple[Parameters, OptimizerState]:
        """Trained weights and optimiser state after a step of ``checkpoints``; at step 0 the state is empty.

        Raises:
            RecordError: there is no checkpoint after that step.
        """
        saved = read_checkpoint(self.folder, step)
        return saved.parameters, saved.state

    def second_moments(self) -> Parameters | None:
        """Adam's bias-corrected second moment after the last step, by parameter name; None for other optimisers."""
        optimizer = self.manifest["optimizer"]
        if optimizer["type"] != "adamw" or not len(self.schedule):
            return None
        _, state = self.checkpoint(self.checkpoints[-1])
        correction = 1.0 - float(optimizer["betas"][1]) ** len(self.schedule)
        return {name: moment / correction for name, moment in state["second_moment"].items()}

    def load_model(self, into: nn.Module | None = None) -> nn.Module:
        """The fine-tuned model, in evaluation mode, with ``requires_grad`` on what was trained.

        Args:
            into: For a model that is not from ``transformers``: a freshly built module, which is filled.
        """
        model = load_model(self.folder / MODEL) if into is None else load_into(into, self.folder / MODEL)
        set_trainable(model, self.trainable)
        return model

    def load_base(self, into: nn.Module | None = None) -> nn.Module:
        """The model before the first step: the base with its fresh head, or with adapters that add nothing yet.

        Args:
            into: For a model that is not from ``transformers``: a freshly built module, which is filled.
        """
        model = self.load_model(into)
        put_parameters(model, self.checkpoint(0)[0])
        return model

    def base_beside(self, model: nn.Module) -> nn.Module:
        """The model before the first step, as ``load_base``, beside the fine-tuned one: frozen weights share memory.

        Args:
            model: What ``load_model`` returned, on the CPU. Whoever trains one of the two takes a copy.
        """
        before = self.checkpoint(0)[0]
        twins = {
            id(parameter): nn.Parameter(before[name].clone() if name in before else parameter.detach(), False)
            for name, parameter in model.named_parameters()
        }
        base = copy.deepcopy(model, dict(twins))
        set_trainable(base, self.trainable)
        return base

    def load_processor(self, kind: str = "AutoTokenizer") -> Any:
        """The tokenizer or image processor saved with the run.

        Args:
            kind: The class of ``transformers`` that loads it.

        Raises:
            ModelError: the task had none.
        """
        return load_processor(self.folder / MODEL, kind)

    def load_tokenizer(self) -> Any:
        """Deprecated: ``load_processor``."""
        warnings.warn("Run.load_tokenizer is now Run.load_processor", DeprecationWarning, stacklevel=2)
        return self.load_processor()


def check_format_version(about: Mapping[str, Any], folder: Path) -> None:
    """Refuses a run, complete or not, that newer code wrote in a form that this code does not know.

    Args:
        about: Its ``manifest.json`` or ``run.json``; one without a ``format_version`` is of version 1.
        folder: The run's folder.

    Raises:
        RecordError: the message says what was found and what would be right.
    """
    found = about.get("format_version", 1)
    if isinstance(found, int) and 1 <= found <= FORMAT_VERSION:
        return
    wrote = about.get("versions", {}).get("bento-audit", "of an unknown version")
    raise RecordError(
        f"{folder} has format version {found}, written by bento-audit {wrote}; this one reads format versions up to "
        f"{FORMAT_VERSION}. Install that version or a later one to open it.",
        field=str(folder),
    )


def _why_no_run(folder: Path) -> str:
    if (folder / INCOMPLETE).is_file():
        begun = read_json(folder / INCOMPLETE)
        done = max(saved_steps(folder), default=0)
        return (
            f"the run in {folder} was interrupted after step {done} of {begun['steps']}; "
            "start the same fine-tuning again to resume it"
        )
    if folder.is_dir():
        return f"{folder} holds no recorded run: it has no {MANIFEST}"
    return f"there is no recorded run in {folder}: the folder does not exist"

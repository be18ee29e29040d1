"""Options of everything that executes a recorded run's steps again, each written once."""

from __future__ import annotations

import os
from typing import TypedDict

from torch import nn

from influence_engine.progress import Progress, silent
from influence_engine.training.frozen_cache import FrozenCache


class ModelOptions(TypedDict, total=False):
    """Where and in what a recorded run's model is loaded.

    Attributes:
        into: For a model that is not from ``transformers``: a freshly built module, which is filled.
        device: Where to execute; ``"auto"``, the default, is the GPU if there is one.
        progress: Called with every stage and how far it is.
    """

    into: nn.Module | None
    device: str
    progress: Progress


class RetrainingOptions(ModelOptions, total=False):
    """How a recorded run is trained again, several times over.

    Attributes:
        frozen_cache: Outputs of frozen layers, shared by all executions of the run on one device: frozen layers run in
            the first one only.
    """

    frozen_cache: FrozenCache | None


class InterruptibleOptions(ModelOptions, total=False):
    """How work that may be interrupted is executed.

    Attributes:
        save_every_s: Seconds of work that an interruption may cost.
    """

    save_every_s: float


class ExecutionOptions(RetrainingOptions, InterruptibleOptions, total=False):
    """How recorded steps are executed again, by ``reexecute`` and ``replay``.

    Attributes:
        keep_in: A folder for unfinished and finished work: the same call later resumes it, to the same bits, or reads
            the result.
    """

    keep_in: str | os.PathLike[str] | None


MODEL_DEFAULTS: ModelOptions = {"into": None, "device": "auto", "progress": silent}

RETRAINING_DEFAULTS: RetrainingOptions = {**MODEL_DEFAULTS, "frozen_cache": None}

INTERRUPTIBLE_DEFAULTS: InterruptibleOptions = {**MODEL_DEFAULTS, "save_every_s": 20.0}

EXECUTION_DEFAULTS: ExecutionOptions = {**RETRAINING_DEFAULTS, **INTERRUPTIBLE_DEFAULTS, "keep_in": None}

RENAMED = {"kept": "frozen_cache"}
"""Options that had another name before."""

"""Options that everything shares which trains a recorded run again."""

from __future__ import annotations

from typing import TypedDict

from torch import nn

from influence_engine.progress import Progress, silent
from influence_engine.training.frozen_cache import FrozenCache


class RetrainingOptions(TypedDict, total=False):
    """Where and on what a recorded run is trained again.

    Attributes:
        into: For a model that is not from ``transformers``: a freshly built module, which is filled.
        device: Where to train; ``"auto"``, the default, is the GPU if there is one.
        frozen_cache: Outputs of frozen layers, shared by all executions of the run on one device.
        progress: Called with every stage and how far it is.
    """

    into: nn.Module | None
    device: str
    frozen_cache: FrozenCache | None
    progress: Progress


RETRAINING_DEFAULTS: RetrainingOptions = {"into": None, "device": "auto", "frozen_cache": None, "progress": silent}

RENAMED = {"kept": "frozen_cache"}
"""Options of ``RetrainingOptions`` that had another name before."""

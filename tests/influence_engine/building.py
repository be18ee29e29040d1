"""The context of a build, for tests of its stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from influence_engine import IndexSettings
from influence_engine.index.building.approximation import Approximation
from influence_engine.index.building.context import BuildContext
from influence_engine.index.building.pipeline import passes_for
from influence_engine.index.building.provenance import Provenance


def build_context(model: nn.Module, task: Any, train: Any, folder: Path, settings: IndexSettings) -> BuildContext:
    """The build of an index of one step at the final weights, of a model whose training was not recorded."""
    passes = passes_for(model, task, settings)
    return BuildContext(passes, train, settings, Provenance({}), Approximation("final"), folder)

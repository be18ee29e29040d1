"""Ground truth: measurements after training without some examples, cached on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, Unpack

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from influence_engine.digests import json_digest
from influence_engine.evaluation.removals import Removal
from influence_engine.options import with_defaults
from influence_engine.resources import choose_device, to_device
from influence_engine.tasks import Batch, Example, Task, with_targets
from influence_engine.tensor_files import write_tensors
from influence_engine.training import Run, finetune, reexecute
from influence_engine.training.execution_options import RENAMED, RETRAINING_DEFAULTS, RetrainingOptions
from influence_engine.training.frozen_cache import FrozenCache
from influence_engine.training.step import put_parameters

Kind = Literal["removal", "afresh"]
"""``removal``: the recorded steps with weight 0 for the removed examples, whose derivative replay computes. ``afresh``:
a new training on the remaining examples, in a new order."""

_BATCH = 64


class Retraining:
    """Measures queries on models retrained without some examples.

    Args:
        run: The recorded run.
        task: The run's task.
        train: The run's training examples.
        queries: Queries; each is measured on the target that it names, else on what the recorded model predicts.
        cache: Folder that caches each retraining's measurements, under a digest of all that they depend on.
        options: ``RetrainingOptions``; ``frozen_cache`` can be shared with replays of the run.
    """

    def __init__(
        self,
        run: Run,
        task: Task,
        train: Sequence[Example],
        queries: Sequence[Example],
        cache: str | os.PathLike[str],
        **options: Unpack[RetrainingOptions],
    ) -> None:
        chosen = with_defaults(Retraining, RETRAINING_DEFAULTS, options, renamed=RENAMED)
        self.run = run
        self.task = task
        self.train = train
        self.queries = queries
        self.cache = Path(cache)
        self.device = choose_device(chosen["device"])
        self.progress = chosen["progress"]
        self._into = chosen["into"]
        self._frozen_cache = chosen["frozen_cache"] or FrozenCache()
        self._identity = {
            "files": run.manifest["files"],
            "queries": json_digest([dict(query) for query in queries]),
        }

    def measurements(self, removals: Sequence[Removal], kind: Kind = "removal", *, seed: int = 1) -> Tensor:
        """Measurements of all queries after each removal, ``[S, Q]`` in double precision.

        Args:
            removals: Sets of examples to train without.
            kind: How to train.
            seed: Seed of the new orders of ``afresh``; removal ``s`` is trained with ``seed + s``.
        """
        rows = []
        for number, removal in enumerate(removals):
            path = self._path(removal, kind, seed + number)
            if not path.exists():
                batches = self._batches  # first: an ``into`` is one module, which every model is loaded into
                measured = self._measured(self._retrained(removal, kind, seed + number), batches)
                write_tensors(path, {"measurements": measured})
            rows.append(load_file(path)["measurements"])
            self.progress(f"retraining ({kind})", number + 1, len(removals))
        return torch.stack(rows)

    def cached(self, removals: Sequence[Removal], kind: Kind = "removal", *, seed: int = 1) -> int:
        """How many of the retrainings have their measurements in the cache."""
        return sum(self._path(removal, kind, seed + number).exists() for number, removal in enumerate(removals))

    def recorded(self) -> Tensor:
        """Measurements of all queries on the recorded model itself, ``[Q]``."""
        return self._measured(self.run.load_model(self._into), self._batches)

    def _path(self, removal: Removal, kind: Kind, seed: int) -> Path:
        parts = {**self._identity, "removed": list(removal.example_ids), "kind": kind}
        if removal.weight:
            parts["weight"] = removal.weight
        digest = json_digest(parts if kind == "removal" else {**parts, "seed": seed})
        return self.cache / f"{digest}.safetensors"

    def _retrained(self, removal: Removal, kind: Kind, seed: int) -> nn.Module:
        if kind == "removal":
            weights = dict.fromkeys(removal.example_ids, removal.weight)
            parameters = reexecute(
                self.run,
                self.task,
                self.train,
                weights=weights,
                into=self._into,
                device=str(self.device),
                frozen_cache=self._frozen_cache,
            )
            model = self.run.load_model(self._into)
            put_parameters(model, parameters)
            return model
        removed = set(removal.example_ids)
        remaining = [example for example in self.train if example["example_id"] not in removed]
        settings = self.run.settings
        assert settings is not None
        # The same initial weights: only the order is new, and the removed examples are missing.
        model = self.run.load_base(self._into)
        changed = settings.model_copy(update={"seed": settings.seed + seed})
        return finetune(self.task, model, remaining, settings=changed, device=str(self.device)).model

    @cached_property
    def _batches(self) -> list[Batch]:
        """The queries with the targets of all models: the named ones, else what the recorded model predicts."""
        recorded = self.run.load_model(self._into).to(self.device).eval()
        return [
            with_targets(
                self.task, recorded, to_device(self.task.collate(self.queries[start : start + _BATCH]), self.device)
            )
            for start in range(0, len(self.queries), _BATCH)
        ]

    def _measured(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        model = model.to(self.device).eval()
        with torch.no_grad():
            parts = [self.task.measurement(self.task.outputs(model, batch), batch).double().cpu() for batch in batches]
        return torch.cat(parts)

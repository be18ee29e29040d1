"""Training examples in the order of an index's rows."""

from __future__ import annotations

from collections.abc import Sequence

from influence_engine.errors import DigestMismatchError
from influence_engine.index.index import InfluenceIndex
from influence_engine.tasks import Example, Task
from influence_engine.training.identity import first_difference


def in_index_order(index: InfluenceIndex, task: Task, train: Sequence[Example]) -> list[Example]:
    """The training examples in the order of the index's rows.

    Raises:
        DigestMismatchError: the index was built from other examples.
    """
    different = first_difference(index.manifest.digests, task, train)
    if different is not None:
        what, digest, recorded = different
        given = "training examples" if what in ("data", "inputs") else what
        raise DigestMismatchError(
            f"the {given} given are not those of the index in {index.folder}: their digest ({what}) is {digest}, "
            f"it was built from {recorded}. Build the index again: bento-audit index build",
            field=what,
        )
    by_id = {example["example_id"]: example for example in train}
    return [by_id[example_id] for example_id in index.example_ids]

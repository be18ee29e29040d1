"""Training examples in the order of an index's rows."""

from __future__ import annotations

from collections.abc import Sequence

from influence_engine.errors import DigestMismatchError
from influence_engine.index.index import InfluenceIndex
from influence_engine.tasks import Example
from influence_engine.training.identity import data_digest


def in_index_order(index: InfluenceIndex, train: Sequence[Example]) -> list[Example]:
    """The training examples in the order of the index's rows.

    Raises:
        DigestMismatchError: the index was built from other examples.
    """
    digest = data_digest(train)
    if digest != index.manifest.digests["data"]:
        raise DigestMismatchError(
            f"the training examples given are not those of the index in {index.folder}: their digest is {digest}, "
            f"it was built from {index.manifest.digests['data']}. Build the index again: bento-audit index build",
            field="data",
        )
    by_id = {example["example_id"]: example for example in train}
    return [by_id[example_id] for example_id in index.example_ids]

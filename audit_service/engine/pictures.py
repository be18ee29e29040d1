"""The picture of a training example, by the handle that explanations name it by."""

from __future__ import annotations

from audit_service.errors import ExampleNotFoundError
from influence_engine.errors import InputError
from influence_engine.index import InfluenceIndex
from influence_engine.tasks import Task, fields_of, kept, picture_of


def picture_of_example(task: Task, index: InfluenceIndex, handle: str) -> tuple[bytes, str] | None:
    """A file that shows the example as the model reads it, with its media type.

    ``None`` where this reader sees no examples: the index keeps none and their source cannot be read, or the index is
    encrypted and the key is not here.

    Raises:
        ExampleNotFoundError: the index has no such handle.
    """
    row = index.row_of(handle)
    if row is None:
        raise ExampleNotFoundError(f"this index has no example {handle[:80]!r}", field="example_handle")
    fields = index.describe([row])[0]["fields"]
    if not fields:
        return None
    try:
        return picture_of(fields_of(task), kept(task, fields))
    except InputError:  # a file that was there when the index was built is gone
        return None

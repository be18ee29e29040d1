"""Promise: batches of like size hold every example once, and hardly any padding."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from influence_engine.tasks import batches_of_like_size, example_sizes


@given(lengths=st.lists(st.integers(1, 9), max_size=30), count=st.integers(1, 8))
def test_every_example_is_in_one_batch_the_longest_first(task: Any, lengths: list[int], count: int) -> None:
    examples = [{"text": " ".join(["film"] * length)} for length in lengths]

    batches = batches_of_like_size(task, examples, count)

    assert sorted(place for places in batches for place in places) == list(range(len(examples)))
    assert all(len(places) == count for places in batches[:-1])
    sizes = example_sizes(task, examples)
    in_order = [sizes[place] for places in batches for place in places]
    assert in_order == sorted(sizes, reverse=True)

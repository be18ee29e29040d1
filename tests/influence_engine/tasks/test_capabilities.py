"""Promise: batches of like size hold every example once, and hardly any padding; sizes are those of batches of one."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from influence_engine.tasks import batches_of_like_size, example_sizes, unread_part


@given(lengths=st.lists(st.integers(1, 9), max_size=30), count=st.integers(1, 8))
def test_every_example_is_in_one_batch_the_longest_first(task: Any, lengths: list[int], count: int) -> None:
    examples = [{"text": " ".join(["film"] * length)} for length in lengths]

    batches = batches_of_like_size(task, examples, count)

    assert sorted(place for places in batches for place in places) == list(range(len(examples)))
    assert all(len(places) == count for places in batches[:-1])
    sizes = example_sizes(task, examples)
    in_order = [sizes[place] for places in batches for place in places]
    assert in_order == sorted(sizes, reverse=True)


@given(texts=st.lists(st.text(st.sampled_from("film god, bad 123 ?!é")).filter(str.strip), max_size=9))
def test_texts_counted_together_have_the_size_of_a_batch_of_one(task: Any, texts: list[str]) -> None:
    examples = [{"text": text * repeated} for text in texts for repeated in (1, 40)]

    alone = [task.collate([example])["input_ids"].numel() for example in examples]

    assert example_sizes(task, examples) == alone


def test_a_text_longer_than_the_model_reads_says_how_much_of_it_was_read(task: Any) -> None:
    fits = {"text": " ".join(["film"] * task.max_length)}
    longer = {"text": fits["text"] + " film"}

    assert unread_part(task, fits) is None
    assert unread_part(task, longer) == f"only the first {task.max_length} of {task.max_length + 1} tokens were read"
    assert unread_part(object(), longer) is None

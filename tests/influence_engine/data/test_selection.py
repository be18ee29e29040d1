from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from influence_engine.data.selection import PARTS, part_of, sample

ids = st.lists(st.text(max_size=20), unique=True, max_size=50)


def test_shares_of_parts_add_up_to_one() -> None:
    assert sum(share for _, share in PARTS) == pytest.approx(1.0)


def test_parts_have_about_their_shares() -> None:
    counts = Counter(part_of(f"movies-{number}") for number in range(10_000))

    assert {part: count / 10_000 for part, count in counts.items()} == pytest.approx(dict(PARTS), abs=0.02)


@given(ids)
def test_every_example_is_in_exactly_one_part_whatever_is_beside_it(example_ids: list[str]) -> None:
    together = {part: {example_id for example_id in example_ids if part_of(example_id) == part} for part, _ in PARTS}

    assert sum(len(members) for members in together.values()) == len(example_ids)
    assert set().union(*together.values()) == set(example_ids)


@given(ids, st.integers(1, 60), st.integers(), st.randoms(use_true_random=False))
def test_a_sample_does_not_depend_on_the_order_of_rows(
    example_ids: list[str], limit: int, seed: int, chance: random.Random
) -> None:
    shuffled = list(example_ids)
    chance.shuffle(shuffled)

    assert sample(example_ids, limit, seed) == sample(shuffled, limit, seed)


@given(ids, st.integers(1, 60), st.integers(0, 60), st.integers())
def test_a_smaller_sample_lies_within_a_larger_one(example_ids: list[str], limit: int, more: int, seed: int) -> None:
    small, large = sample(example_ids, limit, seed), sample(example_ids, limit + more, seed)

    assert small <= large <= set(example_ids)
    assert len(large) == min(limit + more, len(example_ids))


def test_another_seed_gives_another_sample() -> None:
    example_ids = [f"movies-{number}" for number in range(1_000)]

    assert sample(example_ids, 100, seed=0) != sample(example_ids, 100, seed=1)

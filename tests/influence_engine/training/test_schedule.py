"""The order of a run: seeded, whole, and stored without loss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from influence_engine.training.schedule import (
    checkpoint_steps,
    derived_seed,
    group_by_size,
    learning_rate_at,
    plan_schedule,
    schedule_from,
    schedule_of,
)
from influence_engine.training.settings import FinetuneSettings

SETTINGS = FinetuneSettings(epochs=2, batch_size=3, accumulation=2, seed=5)


def test_every_epoch_sees_every_example_once_in_an_order_of_its_own() -> None:
    schedule = plan_schedule(SETTINGS, 20)
    first, second = schedule.rows[:20], schedule.rows[20:]

    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(20))
    assert first.tolist() != second.tolist()


def test_a_step_is_cut_into_micro_batches_and_normalised_by_all_of_its_examples() -> None:
    schedule = plan_schedule(SETTINGS, 20)
    sizes = [[len(rows) for rows in step.rows] for step in schedule.steps()]

    assert sizes == [[3, 3], [3, 3], [3, 3], [2]] * 2
    assert schedule.normalizers.tolist() == [6, 6, 6, 2] * 2
    assert all(bool((share == 1).all()) for step in schedule.steps() for share in step.shares)


def test_the_same_seed_gives_the_same_order_and_another_seed_another() -> None:
    rows = plan_schedule(SETTINGS, 20).rows

    assert torch.equal(rows, plan_schedule(SETTINGS, 20).rows)
    assert not torch.equal(rows, plan_schedule(SETTINGS.model_copy(update={"seed": 6}), 20).rows)


def test_planning_leaves_the_random_state_of_the_caller_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)

    plan_schedule(SETTINGS, 20)

    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_only_steps_that_draw_random_numbers_have_a_seed(dropout: float) -> None:
    schedule = plan_schedule(SETTINGS.model_copy(update={"dropout": dropout}), 20)
    seeds = [step.seed for step in schedule.steps()]

    assert seeds == [None] * 8 if not dropout else len(set(seeds)) == 8


def test_a_schedule_survives_its_tensors() -> None:
    schedule = plan_schedule(SETTINGS.model_copy(update={"dropout": 0.1}), 20)
    again = schedule_from(schedule.tensors() | {"losses": torch.zeros(8)})

    assert [str(step) for step in again.steps()] == [str(step) for step in schedule.steps()]
    assert [str(step) for step in schedule_of(list(schedule.steps())).steps()] == [str(s) for s in schedule.steps()]


def test_a_run_without_steps_is_empty() -> None:
    schedule = schedule_of([])

    assert len(schedule) == 0
    assert list(schedule.steps()) == []


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("cosine", [0.5, 1.0, 1.0, 0.8535534, 0.5, 0.1464466]),
    ],
)
def test_the_learning_rate_warms_up_and_then_follows_its_schedule(schedule: str, expected: list[float]) -> None:
    settings = FinetuneSettings.model_validate({"schedule": schedule, "learning_rate": 1.0, "warmup_ratio": 1 / 3})

    assert [learning_rate_at(settings, number, 6) for number in range(1, 7)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [(100, None, list(range(0, 101, 10))), (1, None, [0, 1]), (5, 2, [0, 2, 5]), (3, 10, [0, 1, 2, 3])],
)
def test_checkpoints_are_evenly_spaced_from_start_to_end(total: int, count: int | None, expected: list[int]) -> None:
    assert checkpoint_steps(total, count) == expected


def test_seeds_differ_by_purpose_and_number_and_fit_63_bits() -> None:
    seeds = {derived_seed(0, purpose, number) for purpose in ("order", "step") for number in range(50)}

    assert len(seeds) == 100
    assert max(seeds) < 2**63


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=24),
    st.integers(1, 8),
    st.integers(0, 100),
)
def test_micro_batches_of_like_size_hold_every_row_once_and_waste_the_least(
    sizes: list[int], most: int, pass_cost: int
) -> None:
    rows = torch.randperm(len(sizes))
    batches = group_by_size(rows, sizes, most, pass_cost)
    assert sorted(torch.cat(batches).tolist()) == list(range(len(sizes)))
    assert max(len(batch) for batch in batches) <= most

    def cost(groups: list[torch.Tensor]) -> int:
        return sum(max(sizes[row] for row in group.tolist()) * len(group) + pass_cost for group in groups)

    assert cost(batches) <= cost(list(torch.split(rows, most)))


def test_grouping_by_size_keeps_the_steps_and_what_they_hold() -> None:
    sizes = [1 + 3 * (row % 7) for row in range(20)]
    plain, grouped = plan_schedule(SETTINGS, 20), plan_schedule(SETTINGS, 20, sizes, pass_cost=1)
    assert len(plain) == len(grouped)
    for one, other in zip(plain.steps(), grouped.steps(), strict=True):
        assert sorted(torch.cat(one.rows).tolist()) == sorted(torch.cat(other.rows).tolist())
        assert (one.normalizer, one.learning_rate, one.seed) == (other.normalizer, other.learning_rate, other.seed)

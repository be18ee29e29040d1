"""Promises: a replay says before it starts what it will take, and what it cannot do."""

from __future__ import annotations

from typing import Any

import pytest

from influence_engine import Run
from influence_engine.replay import plan_replay
from tests.influence_engine.vectors import make_network


def test_time_and_memory_grow_with_the_directions(vector_run: Run, vector_task: Any, vector_train: Any) -> None:
    few, many = (plan_replay(vector_run, vector_task, vector_train, k, into=make_network()) for k in (2, 40))
    assert few.steps == many.steps == len(vector_run.schedule)
    assert many.seconds > few.seconds > 0
    parameters = sum(tensor.nbytes for tensor in vector_run.checkpoint(0)[0].values())
    # A direction handed in, and it and both of Adam's moments carried back.
    assert many.memory_bytes - few.memory_bytes == 38 * 4 * parameters
    assert many.disk_bytes > few.disk_bytes
    assert "40 directions" in str(many)


def test_other_data_are_refused_before_any_time_is_spent(vector_run: Run, vector_task: Any, vector_train: Any) -> None:
    with pytest.raises(Exception, match="the data given is not that of the run"):
        plan_replay(vector_run, vector_task, vector_train[1:], 2, into=make_network())

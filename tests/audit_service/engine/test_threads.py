"""The number of threads is what is measured to be fastest here and now, and the config's where it says one."""

from __future__ import annotations

import itertools

import pytest

from audit_service.engine import threads
from audit_service.engine.threads import LATELY, ThreadChoice, best_of


class Machine:
    """Explanations take what is said for each number of threads, by a clock of its own."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds, self.now, self.count, self.measured = seconds, 0.0, 1, 0

    def explain(self) -> None:
        self.now += self.seconds[self.count]
        self.measured += 1

    def choice(self, fixed: int | None = None) -> ThreadChoice:
        return ThreadChoice(self.explain, fixed=fixed, clock=lambda: self.now, set_threads=self.set)

    def set(self, count: int) -> None:
        self.count = count

    def explain_often(self, choice: ThreadChoice) -> None:
        for _ in range(LATELY):
            self.now += 10 * self.seconds[self.count]  # longer texts than the one that is measured with
            choice.took(10 * self.seconds[self.count])
            choice.again()


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "candidates", lambda: [1, 2])


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [({1: 1.0, 2: 0.6}, 2), ({1: 1.0, 2: 0.9}, 1), ({1: 1.0, 2: 3.0}, 1), ({1: 4.0, 2: 2.2, 4: 2.1}, 2)],
)
def test_more_threads_are_taken_where_they_are_clearly_faster(seconds: dict[int, float], chosen: int) -> None:
    assert best_of(seconds) == chosen


def test_it_is_measured_at_the_start_and_again_when_the_machine_has_changed() -> None:
    machine = Machine({1: 1.0, 2: 0.6})
    choice = machine.choice()
    assert choice.choose() == machine.count == 2
    measured = machine.measured
    for _ in range(5):
        machine.explain_often(choice)
    assert machine.measured == measured, "nothing has changed"
    machine.seconds = {1: 1.1, 2: 3.0}  # a neighbour has come
    machine.explain_often(choice)
    assert choice.threads == machine.count == 1
    machine.explain_often(choice)
    machine.seconds = {1: 0.5, 2: 0.3}  # and gone
    machine.explain_often(choice)
    assert machine.count == 2


def test_what_measuring_does_not_change_is_measured_ever_less_often() -> None:
    machine = Machine({1: 1.0, 2: 3.0})
    choice = machine.choice()
    choice.choose()
    times = []
    while len(times) < 4:
        before = machine.measured
        machine.seconds = {count: 2.5 / seconds for count, seconds in machine.seconds.items()}
        machine.seconds = {1: machine.seconds[1], 2: 3 * machine.seconds[1]}
        machine.explain_often(choice)
        if machine.measured > before:
            times.append(machine.now)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert pauses == sorted(pauses)
    assert pauses[-1] > 2 * threads.AGAIN_S


def test_a_number_in_the_config_is_taken_without_measuring() -> None:
    machine = Machine({3: 1.0})
    choice = machine.choice(fixed=3)
    assert choice.choose() == machine.count == 3
    machine.explain_often(choice)
    assert machine.measured == 0

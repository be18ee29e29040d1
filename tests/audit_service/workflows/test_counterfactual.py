"""Promises: a question survives the queue, what is left counts down, one process works, results are counted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from audit_service.schemas import Edit, Relabel, Selection
from audit_service.workflows.counterfactual import Countdown, Question, seconds_left

selections = st.one_of(
    st.builds(Selection, top_k=st.integers(1, 100), polarity=st.sampled_from(["both", "proponents", "opponents"])),
    st.builds(Selection, group=st.dictionaries(st.text(), st.text(), min_size=1, max_size=1)),
    st.builds(Selection, examples=st.lists(st.text(), min_size=1, max_size=5)),
)
questions = st.one_of(
    st.builds(Question, input=st.fixed_dictionaries({"text": st.text()}), without=selections, replay=st.booleans()),
    st.builds(
        Question,
        input=st.fixed_dictionaries({"text": st.text()}),
        target=st.none() | st.text(),
        relabel=selections.map(lambda one: Relabel(**one.model_dump(), label="x")),
    ),
    st.builds(
        Question, input=st.just({"text": "x"}), edit=st.builds(Edit, example=st.text(), text=st.text(min_size=1))
    ),
)


@given(questions)
def test_a_question_is_what_its_content_says(question: Question) -> None:
    assert Question.of(question.content()) == question


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4))
def test_what_is_left_counts_down_over_all_stages(totals: list[int]) -> None:
    said: list[float] = []

    def note(stage: str, done: int, total: int, note: str = "") -> None:
        left = seconds_left(note)
        if left is not None:
            said.append(left)

    countdown = Countdown(note, {str(number): 100.0 for number in range(len(totals))})
    for number, total in enumerate(totals):
        for done in range(1, total + 1):
            countdown(str(number), done, total)
        assert said[-1] == 100.0 * (len(totals) - number - 1), "the stages that come after it, as predicted"
    assert all(0 <= left <= 100.0 * len(totals) for left in said)
    assert seconds_left("loss 0.3") is None

"""A tagger through the house's workflows: what was planted in its training data comes out on top."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from audit_service.config import load_config
from audit_service.workflows.batch_explanation import Question, explain_input
from audit_service.workspace import Workspace
from influence_engine.errors import InputError, SettingsError
from tests.entities import CITY, WRONG, EntitiesProject

TEXT = f"show me the flights from boston to {CITY} on monday"


@pytest.fixture(scope="module")
def workspace(entities_project: EntitiesProject) -> Workspace:
    return Workspace(load_config(entities_project.file))


def asked(workspace: Workspace, label: str) -> dict[str, Any]:
    start = TEXT.index(CITY)
    target = {"span": [start, start + len(CITY)], "label": label}
    return explain_input(workspace, {"text": TEXT}, Question(target=target, top_k=100, parts=True))


def by_mention(answer: Mapping[str, Any]) -> Counter[tuple[str, str | None]]:
    """The influence of all mentions of a name as a type, strongest support first."""
    sums: Counter[tuple[str, str | None]] = Counter()
    for example in answer["examples"]:
        for part in example["parts"]:
            sums[example["text"][part["start"] or 0 : part["end"] or 0], part["label"]] += part["influence"]
    return sums


def test_mentions_whose_type_was_changed_are_why_a_city_is_an_airline(workspace: Workspace) -> None:
    answer = asked(workspace, WRONG)
    ((mention, influence), (_, second), *_) = by_mention(answer).most_common()
    assert mention == (CITY, WRONG)
    assert influence > 2 * second
    planted = sum(CITY in one["text"].split() for one in workspace.train)
    assert planted < 0.25 * len(workspace.train), "else any ten enquiries would have the city"
    assert answer["quality"]["parts"]["agreement"] > 0.7
    for one in answer["examples"]:
        whole = sum(part["influence"] for part in one["parts"]) + one["parts_residual"]
        assert whole == pytest.approx(one["influence"], abs=1e-6)


def test_the_same_mentions_speak_against_what_the_city_is(workspace: Workspace) -> None:
    *_, (mention, influence) = by_mention(asked(workspace, "destination")).most_common()
    assert mention == (CITY, WRONG)
    assert influence < 0


def test_without_a_target_an_entity_that_was_predicted_is_explained(workspace: Workspace) -> None:
    answer = explain_input(workspace, {"text": TEXT}, Question(top_k=2))
    target, entities = answer["differences"]["target"], answer["prediction"]["entities"]
    best = max(entities, key=lambda one: one["confidence"])
    assert target == {"span": [best["start"], best["end"]], "label": best["label"]}
    assert all("parts" not in one for one in answer["examples"])


def test_a_span_that_is_none_is_refused_by_its_field(workspace: Workspace) -> None:
    question = Question(target={"span": [0, 999], "label": WRONG})
    with pytest.raises(InputError) as refused:
        explain_input(workspace, {"text": TEXT}, question)
    assert refused.value.field == "target"


def test_what_takes_one_label_an_example_says_so(workspace: Workspace) -> None:
    from audit_service.workflows.evaluation import run_planted

    with pytest.raises(SettingsError, match="one label an example"):
        run_planted(workspace, 0.1, workspace.config.root / "planted")

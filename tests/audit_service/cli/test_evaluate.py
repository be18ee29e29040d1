"""Promises of `bento-audit evaluate`: retrains for real, keeps what was retrained, shows it as table and plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from audit_service.cli.group import main

FEW = ("--queries", "8", "--tuning", "2", "--subsets", "3", "--fraction", "0.1")


def bento_audit(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def answer(*arguments: str) -> dict[str, Any]:
    result = bento_audit(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_an_evaluation_is_announced_done_kept_and_drawn(films: Path) -> None:
    before = answer("evaluate", "films", *FEW, "--dry-run")
    assert (before["retrainings"], before["kept"]) == (3, 0)
    assert before["seconds"] > 0
    assert not (films / "state" / "films" / "evaluation").exists()

    found = answer("evaluate", "films", *FEW, "--single", "2")
    methods = {row["method"] for row in found["rows"]}
    assert {"estimated", "BM25, signed by label", "base embedding, signed by label", "gradient dot"} <= methods
    assert (found["approximation"], found["damping_tuned"]) == ("unrolled", {})
    assert found["single"]["examples"] == 2
    folder = films / "state" / "films" / "evaluation"
    written = json.loads((folder / "evaluation.json").read_text())
    assert written["rows"] == found["rows"]
    assert written["index"]["rows"] == found["examples"]
    assert (folder / "evaluation.png").read_bytes().startswith(b"\x89PNG")

    again = answer("evaluate", "films", *FEW, "--single", "2", "--dry-run")
    assert (again["retrainings"], again["kept"], again["seconds"]) == (5, 5, 0)
    for_people = bento_audit("evaluate", "films", *FEW, "--single", "2", "--dry-run").stdout
    assert "8, of which 2 choose the damping" in for_people
    assert "5, of which 5 are cached" in for_people
    more = answer("evaluate", "films", *FEW, "--single", "4", "--leave-out", "s90", "--leave-out", "s90", "--dry-run")
    assert more["retrainings"] == 8
    assert 4 <= more["kept"] < 8
    shown = bento_audit("evaluate", "films", *FEW)
    assert shown.exit_code == 0, shown.output
    assert "3 retrainings, recorded steps, 10% left out" in shown.output
    assert "gradient cosine" in shown.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--fraction", "1.5"), "0<x<1"),
        (("--fraction", "0.0001"), "must leave some and take some"),
        (("--subsets", "one"), "is not a valid integer"),
        (("--queries", "8", "--tuning", "8"), "some be left to report"),
        (("--queries", "3"), "needs at least 4"),
        (("--leave-out", "s90", "--leave-out", "t1", "--dry-run"), "no training example has the id 't1'"),
        (("--leave-out", "t1"), "no training example has the id 't1'"),
    ],
)
def test_a_question_that_cannot_be_answered_says_why(films: Path, arguments: tuple[str, ...], says: str) -> None:
    result = bento_audit("evaluate", "films", *arguments)
    assert result.exit_code in (1, 2)
    assert says in " ".join(result.output.split())


def test_a_model_without_a_record_cannot_be_evaluated_and_is_told_the_ways_out(films: Path, adopted: Path) -> None:
    config = films / "configs" / "films.yaml"
    config.write_text(config.read_text().replace("base_model: {path: base}", f"model: {{path: {adopted / 'support'}}}"))
    result = bento_audit("evaluate", "films", *FEW)
    assert result.exit_code == 1
    assert "was trained elsewhere" in result.output
    assert "RecordingCallback" in result.output.replace("\n", " ")


def test_replayed_directions_are_made_once_and_evaluated_beside_the_others(films: Path) -> None:
    few = bento_audit("index", "build", "films", "--directions", "3")
    assert few.exit_code == 2
    assert "at least 8" in " ".join(few.output.split())
    built = answer("index", "build", "films", "--directions", "8")
    assert built["tiers"]["replayed"] == "available (8 directions)"
    file = next((films / "index").rglob("replay.safetensors"))
    made = file.stat().st_mtime_ns
    answer("index", "build", "films", "--directions", "8")
    assert file.stat().st_mtime_ns == made

    explained = answer("explain", "films", "--text", "a superb script after all", "--top-k", "2")
    assert {example["tier"] for example in explained["examples"]} == {"replayed"}
    assert 0 < explained["quality"]["share_in_basis"] <= 1
    methods = {row["method"] for row in answer("evaluate", "films", *FEW)["rows"]}
    assert {"estimated", "replayed, 8 directions"} <= methods


OPINIONS = """
import torch
from torch.nn import functional

class Opinions:
    def __init__(self, tokenizer, labels, steep):
        self.tokenizer, self.labels, self.steep = tokenizer, labels, steep

    def collate(self, examples):
        batch = dict(self.tokenizer([example["text"] for example in examples], padding=True, return_tensors="pt"))
        batch["labels"] = torch.tensor([self.labels.index(e["label"]) if "label" in e else -1 for e in examples])
        return batch

    def outputs(self, model, batch):
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    def loss(self, outputs, batch):
        return functional.cross_entropy(self.steep * outputs, batch["labels"], reduction="none")

    def measurement(self, outputs, batch):
        target = torch.where(batch["labels"] < 0, outputs.argmax(-1), batch["labels"])
        return (2 * target - 1) * (outputs[:, 1] - outputs[:, 0])
"""


def own_project(films: Path, module: str, task: str) -> None:
    """A config ``own`` beside ``films`` for a task of one's own; ``module`` is imported once a process."""
    (films / f"{module}.py").write_text(task)
    config = (films / "configs" / "films.yaml").read_text()
    own = f"{{type: '{module}:Opinions', labels: [bad, good], options: {{steep: 2.0}}}}"
    (films / "configs" / "own.yaml").write_text(config.replace("{type: text_classification, labels: [bad, good]}", own))


def test_a_task_of_ones_own_is_evaluated_from_its_config(films: Path) -> None:
    own_project(films, "own_opinions", OPINIONS)
    for verb in (("finetune", "own"), ("index", "build", "own")):
        done = bento_audit(*verb)
        assert done.exit_code == 0, done.output

    found = answer("evaluate", "own", *FEW, "--single", "2")

    lds = {row["method"]: row["lds"] for row in found["rows"]}
    # Without `text` and `label` on the task there is nothing for a text search to go by.
    assert set(lds) == {"estimated", "gradient dot", "gradient cosine"}
    assert all(-1 <= value <= 1 for value in lds.values())
    assert found["single"]["examples"] == 2
    assert found["approximation"] == "unrolled"
    kept = answer("evaluate", "own", *FEW, "--single", "2", "--dry-run")
    assert (kept["retrainings"], kept["kept"]) == (5, 5)
    shown = bento_audit("evaluate", "own", *FEW)
    assert shown.exit_code == 0, shown.output
    assert "3 retrainings, recorded steps, 10% left out" in shown.output


def test_a_task_that_does_not_say_how_many_outputs_it_takes_is_told_how(films: Path) -> None:
    own_project(films, "nameless_opinions", OPINIONS.replace("self.labels", "self.names"))

    refused = bento_audit("finetune", "own")

    assert refused.exit_code == 2
    assert "give it the attribute labels, the names in the order of the outputs" in refused.stderr

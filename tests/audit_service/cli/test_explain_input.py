"""A file of inputs is explained row by row, survives interruptions, and says what its explanations have in common."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from audit_service.cli.group import main
from audit_service.config import load_config
from audit_service.engine.loading import load
from audit_service.workflows.batch_explanation import BATCH, Question, explain_file, partial_folder
from audit_service.workflows.finetuning import run_finetuning
from audit_service.workflows.index_building import build_index
from audit_service.workspace import Workspace
from influence_engine.errors import RecordError
from influence_engine.progress import silent

ROWS = 2 * BATCH + 5
EVERYTHING = Question(top_k=3)


@dataclass(frozen=True)
class Explained:
    """A file, its explanations and what they have in common."""

    inputs: Path
    lines: list[dict[str, Any]]
    summary: dict[str, Any]


def bento_audit(project: Any, *arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["explain", str(project.config.file), *map(str, arguments)])


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def untimed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "timings_ms"} for line in lines]


def message(result: Result) -> str:
    return " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def texts(small_project: Any) -> list[str]:
    return [example["text"] for example in [*small_project.test, *small_project.train]][:ROWS]


@pytest.fixture(scope="module")
def explained(small_project: Any, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Explained:
    folder = tmp_path_factory.mktemp("explained")
    inputs = write_rows(folder / "in.jsonl", [{"id": f"t{n}", "text": text} for n, text in enumerate(texts)])
    out = folder / "new" / "out.jsonl"
    result = bento_audit(small_project, "--input", inputs, "--out", out, "--top-k", "3", "--json")
    assert result.exit_code == 0, result.output
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]
    return Explained(inputs, read_lines(out), json.loads(result.stdout))


def test_every_row_is_explained_in_the_order_of_the_file(explained: Explained) -> None:
    assert [(line["line"], line["id"]) for line in explained.lines] == [(n + 1, f"t{n}") for n in range(ROWS)]
    assert (explained.summary["explained"], explained.summary["skipped"]) == (ROWS, 0)


@pytest.mark.parametrize("number", [0, ROWS - 1])
def test_a_row_is_explained_as_the_same_text_alone(
    small_project: Any, texts: list[str], explained: Explained, number: int
) -> None:
    result = bento_audit(small_project, "--text", texts[number], "--top-k", "3", "--json")

    alone, line = json.loads(result.stdout), explained.lines[number]
    assert set(line) == {*alone, "line", "id"}
    assert line["prediction"]["scores"] == pytest.approx(alone["prediction"]["scores"], rel=1e-4)
    assert line["differences"]["measurement"] == pytest.approx(alone["differences"]["measurement"], rel=1e-4)
    found, expected = (
        {one["example_handle"]: one["influence"] for one in answer["examples"]} for answer in (line, alone)
    )
    assert found == pytest.approx(expected, rel=1e-3)


def test_sums_are_over_all_training_examples_and_not_only_those_returned(
    small_project: Any, texts: list[str], explained: Explained
) -> None:
    loaded = load(Workspace(small_project.config))
    scores = loaded.attributor.scores([{"text": text} for text in texts]).double()
    shares = scores.abs() / scores.abs().sum(1, keepdim=True)
    rows = {handle: row for row, handle in enumerate(loaded.attributor.index.table.column("example_handle"))}

    for one in explained.summary["shared_examples"]:
        row = rows[one["example_handle"]]
        assert one["influence"] == pytest.approx(float(scores[:, row].sum()), rel=1e-3, abs=1e-5)
        assert one["share"] == pytest.approx(float(shares[:, row].mean()), rel=1e-3)
    groups = explained.summary["shared_groups"]
    assert sum(group["share"] for group in groups) == pytest.approx(1.0)
    assert sum(group["examples"] for group in groups) == len(loaded.attributor.index)
    assert sum(group["influence"] for group in groups) == pytest.approx(float(scores.sum()), rel=1e-3, abs=1e-3)


def test_an_example_is_counted_in_as_many_explanations_as_returned_it(explained: Explained) -> None:
    counts = Counter(
        (example["example_handle"], example["polarity"]) for line in explained.lines for example in line["examples"]
    )
    returned = Counter(example["example_handle"] for line in explained.lines for example in line["examples"])

    shared = explained.summary["shared_examples"]
    assert [one["explanations"] for one in shared] == [count for _, count in returned.most_common(len(shared))]
    for one in shared:
        assert one["proponents"] == counts[one["example_handle"], "proponent"]
        assert one["opponents"] == counts[one["example_handle"], "opponent"]


@pytest.mark.parametrize("batches", [0, 1])
def test_an_interrupted_run_goes_on_and_ends_as_if_it_had_not_been_interrupted(
    small_project: Any, explained: Explained, tmp_path: Path, batches: int
) -> None:
    out = tmp_path / "out.jsonl"
    batches_left = []

    def interrupting(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "explaining" and done == batches * BATCH:
            raise KeyboardInterrupt

    def counting(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "explaining" and done:
            batches_left.append(done)

    with pytest.raises(KeyboardInterrupt):
        explain_file(Workspace(small_project.config, interrupting), explained.inputs, out, EVERYTHING)
    assert not out.exists()
    # What a killed process may leave besides: a batch of which not all is on the disk.
    with (partial_folder(out) / "explanations.jsonl").open("a") as file:
        file.write('{"line": 17, "id": "t1')
    summary = explain_file(Workspace(small_project.config, counting), explained.inputs, out, EVERYTHING)

    assert len(batches_left) == 3 - batches
    assert untimed(read_lines(out)) == untimed(explained.lines)
    assert summary == explained.summary
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("text", "top_k", "differs"), [("another film", 3, "input file"), (None, 4, "options")], ids=["input", "options"]
)
def test_what_another_run_left_is_refused_and_kept(
    small_project: Any, tmp_path: Path, text: str | None, top_k: int, differs: str
) -> None:
    inputs, out = write_rows(tmp_path / "in.jsonl", [{"text": f"film {n}"} for n in range(BATCH + 1)]), tmp_path / "o"

    def interrupting(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "explaining" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        explain_file(Workspace(small_project.config, interrupting), inputs, out, EVERYTHING)
    if text is not None:
        write_rows(inputs, [{"text": text}])
    left = (partial_folder(out) / "explanations.jsonl").read_bytes()

    other = Question(top_k=top_k)
    with pytest.raises(RecordError, match=f"differs in {differs}") as refused:
        explain_file(Workspace(small_project.config, silent), inputs, out, other)
    assert "delete the folder" in str(refused.value)
    assert (partial_folder(out) / "explanations.jsonl").read_bytes() == left


def test_an_existing_file_is_never_overwritten(small_project: Any, explained: Explained, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("precious")

    result = bento_audit(small_project, "--input", explained.inputs, "--out", out)

    assert result.exit_code == 2
    assert "exists already" in message(result)
    assert out.read_text() == "precious"


def test_only_wrong_explains_the_prediction_of_rows_whose_label_differs(
    small_project: Any, explained: Explained, tmp_path: Path
) -> None:
    predicted = [line["prediction"]["label"] for line in explained.lines[:6]]
    other = {"negative": "positive", "positive": "negative"}
    labels = [other[label] if number in (1, 4) else label for number, label in enumerate(predicted)]
    given = read_lines(explained.inputs)[:6]
    inputs = write_rows(
        tmp_path / "in.jsonl", [{**row, "label": label} for row, label in zip(given, labels, strict=True)]
    )
    out = tmp_path / "out.jsonl"

    result = bento_audit(small_project, "--input", inputs, "--out", out, "--only-wrong", "--json")

    assert result.exit_code == 0, result.output
    summary, lines = json.loads(result.stdout), read_lines(out)
    assert (summary["explained"], summary["skipped"]) == (2, 4)
    assert [line["id"] for line in lines] == ["t1", "t4"]
    assert [line["differences"]["target"] for line in lines] == [predicted[1], predicted[4]]


def test_where_nothing_is_wrong_the_file_is_empty_and_nothing_is_shared(
    small_project: Any, explained: Explained, tmp_path: Path
) -> None:
    row = {"text": read_lines(explained.inputs)[0]["text"], "label": explained.lines[0]["prediction"]["label"]}
    out = tmp_path / "out.jsonl"

    arguments = ("--input", write_rows(tmp_path / "in.jsonl", [row]), "--out", out, "--only-wrong", "--json")
    result = bento_audit(small_project, *arguments)

    assert json.loads(result.stdout) == {"explained": 0, "skipped": 1, "shared_examples": [], "shared_groups": []}
    assert out.read_text() == ""


def test_a_label_is_explained_and_a_target_instead_of_it(small_project: Any, tmp_path: Path) -> None:
    inputs, out = tmp_path / "in.csv", tmp_path / "out.jsonl"
    with inputs.open("w", newline="") as file:
        rows = [("negative", ""), ("positive", ""), ("positive", "negative"), ("", "positive"), ("", "")]
        csv.writer(file).writerows([("text", "label", "target"), *(("a dull film", *row) for row in rows)])

    assert bento_audit(small_project, "--input", inputs, "--out", out).exit_code == 0

    lines = read_lines(out)
    predicted = lines[-1]["prediction"]["label"]
    targets = [line["differences"]["target"] for line in lines]
    assert targets == ["negative", "positive", "negative", "positive", predicted]
    assert [line["line"] for line in lines] == [2, 3, 4, 5, 6]
    assert lines[0]["id"] is None


def test_bad_rows_are_all_listed_with_their_lines_and_stop_the_run(small_project: Any, tmp_path: Path) -> None:
    inputs, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    inputs.write_text(
        '{"text": "a fine film"}\n{"text": "  "}\n{"text": 7}\n\n{"id": 5}\n{"text": "x", "label": "odd"}\n{"text"\n'
    )

    result = bento_audit(small_project, "--input", inputs, "--out", out)

    assert result.exit_code == 1
    told = message(result)
    assert "5 of 6 rows cannot be used" in told
    for problem in (
        "line 2: 'text' is empty",
        "line 3: 'text' must be a string, got int",
        "line 5: 'text' is missing",
        "line 6: unknown label 'odd'; the labels are 'negative', 'positive'",
        "line 7: is not JSON",
    ):
        assert problem in told
    assert list(tmp_path.iterdir()) == [inputs]


@pytest.mark.parametrize(
    ("row", "arguments", "exit_code", "told"),
    [
        ({"txet": "fine"}, (), 1, "there is no column 'text' with the text to explain. The columns are 'txet'."),
        ({"text": "fine"}, ("--only-wrong",), 1, "there is no column 'label' with them"),
        ({"text": "fine"}, ("--target", "odd"), 2, "unknown label 'odd'; the labels are 'negative', 'positive'"),
    ],
)
def test_what_a_file_lacks_is_said_before_the_model_is_loaded(
    small_project: Any, tmp_path: Path, row: dict[str, str], arguments: tuple[str, ...], exit_code: int, told: str
) -> None:
    inputs = write_rows(tmp_path / "in.jsonl", [row])

    result = bento_audit(small_project, "--input", inputs, "--out", tmp_path / "out.jsonl", *arguments)

    assert result.exit_code == exit_code
    assert told in message(result)
    assert "loading model" not in message(result)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "say what to explain"),
        (("--text", "fine", "--input", "FILE", "--out", "out.jsonl"), "exclude each other"),
        (("--input", "FILE"), "--input needs --out"),
        (("--text", "fine", "--out", "out.jsonl"), "--out goes with --input"),
        (("--text", "fine", "--only-wrong"), "--only-wrong goes with --input"),
        (("--input", "FILE", "--out", "out.jsonl", "--only-wrong", "--target", "negative"), "leave --target out"),
        (("--input", "nowhere.jsonl", "--out", "out.jsonl"), "'nowhere.jsonl' does not exist"),
    ],
)
def test_options_that_do_not_go_together_are_a_usage_error(
    small_project: Any, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    inputs = write_rows(tmp_path / "in.jsonl", [{"text": "fine"}])

    result = bento_audit(small_project, *(inputs if argument == "FILE" else argument for argument in arguments))

    assert result.exit_code == 2
    assert told in message(result)


MISLABELLED = """
task: {labels: [bad, good]}
base_model: {path: base}
data: {train: {csv: wrong.csv, columns: {id: key, text: sentence, label: sentiment}, labels: {0: bad, 1: good}}}
finetune: {epochs: 6, batch_size: 16, learning_rate: 3e-3, warmup_ratio: 0}
index: {approximation: final}
"""
"""A model that starts from random weights: along its steps, and for exact replay, all that is bad supports bad."""


def test_the_mislabelled_training_examples_behind_wrong_predictions_come_out_on_top(
    adopted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(adopted / "base", tmp_path / "base")
    with (adopted / "train.csv").open(newline="") as right, (tmp_path / "wrong.csv").open("w", newline="") as wrong:
        # All that is called superb is labelled as bad.
        rows = [[key, text, "0" if "superb" in text else label] for key, text, label in csv.reader(right)]
        csv.writer(wrong).writerows(rows)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "films.yaml").write_text(MISLABELLED)
    monkeypatch.chdir(tmp_path)
    config = load_config("films")
    workspace = Workspace(config)
    run_finetuning(workspace)
    build_index(workspace)
    with open("errors.csv", "w", newline="") as file:
        things = ("film", "plot", "cast", "ending", "script", "score")
        # Columns and labels as in the training data.
        asked = [("key", "sentence", "sentiment"), *((f"e{thing}", f"a superb {thing}", 1) for thing in things)]
        csv.writer(file).writerows([*asked, ("right", "a dull plot", 0)])

    arguments = ("--input", "errors.csv", "--out", "out.jsonl", "--only-wrong", "--polarity", "proponents", "--json")
    result = CliRunner().invoke(main, ["explain", "films", *arguments])

    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["explained"], summary["skipped"]) == (6, 1)
    assert [line["id"] for line in read_lines(Path("out.jsonl"))] == [f"e{thing}" for thing in things]
    top = summary["shared_examples"][:5]
    assert all("superb" in one["text"] and one["label"] == "bad" for one in top), top
    assert all(one["influence"] > 0 for one in top)

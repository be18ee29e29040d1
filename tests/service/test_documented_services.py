"""The services of ``docs/`` run as they are shown: of one's own, behind others, with several models."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import pytest
from click.testing import CliRunner

from audit_service.bentoml_internals import PICKLED
from audit_service.cli.group import main
from audit_service.config import load_config
from audit_service.workflows.adoption.service_file import add_audit
from audit_service.workflows.export import export_and_register
from audit_service.workspace import Workspace

pytestmark = pytest.mark.service

ROOT = Path(__file__).resolve().parents[2]
FINE = "the plot is superb"


def shown(page: str, name: str) -> str:
    """The code below ``<!-- name -->`` of a page."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = re.search(rf"<!-- {name} -->\n\n```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no code {name!r}"
    return found[1]


@pytest.fixture(scope="module")
def own(adopted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which somebody has done what ``your_own_service.md`` says."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copytree(adopted, folder, dirs_exist_ok=True)
    (folder / "service.py").write_text(shown("your_own_service.md", "before"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        commands = ("init --model support --data train.csv --base base --service service.py", "index build support")
        for command in commands:
            result = CliRunner().invoke(main, command.split())
            assert result.exit_code == 0, result.output
    after = shown("your_own_service.md", "after")
    edited = add_audit(shown("your_own_service.md", "before"), config="support", name="service.py").source
    assert set(edited.split("\n")) <= set(after.split("\n")), "init proposes the lines that are shown"
    (folder / "service.py").write_text(after)
    (folder / "gateway.py").write_text(shown("your_own_service.md", "gateway"))
    return folder


@pytest.fixture(scope="module")
def desk(finished_films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the models ``sentiment`` and ``urgency``; they have one run and index, under two names."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(finished_films, folder, dirs_exist_ok=True)
    export_and_register(Workspace(load_config(folder / "configs" / "films.yaml")))
    config = (folder / "configs" / "films.yaml").read_text()
    for name in ("sentiment", "urgency"):
        places = "folders: {runs: runs/films, index: index/films, onnx: models/films}\n"
        (folder / "configs" / f"{name}.yaml").write_text(config + places)
    (folder / "service.py").write_text(shown("several_models.md", "one service"))
    (folder / "letters.py").write_text(shown("several_models.md", "several services"))
    return folder


def wait_for_engine(ask: Callable[[], httpx.Response]) -> dict[str, Any]:
    """Asks until the engine has loaded what the question is about."""
    for _ in range(300):
        answer = ask()
        if answer.status_code != 503:
            break
        time.sleep(0.2)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


# A service of one's own behind another one


@pytest.fixture(scope="module", params=["unix sockets", "tcp"])
def gateway(request: pytest.FixtureRequest, own: Path, start_module_server: Any) -> Any:
    """The outer service, with the inner one beside it on a Unix socket, or on TCP, where BentoML has no others."""
    environment = {"BENTOML_NO_UDS": "1"} if request.param == "tcp" else {}
    return start_module_server("gateway:Gateway", cwd=own, env=environment)


def test_a_service_may_depend_on_an_audited_one_whose_predictions_are_recorded_and_explained(gateway: Any) -> None:
    answer = gateway.post("/read", {"text": FINE}).json()
    assert answer["good"] is True
    prediction_id = answer["prediction_id"]
    explanation = wait_for_engine(lambda: gateway.post("/why", {"prediction_id": prediction_id}))
    assert explanation["prediction_id"] == prediction_id
    assert explanation["prediction"]["label"] == "good"
    assert len(explanation["examples"]) == 3
    counted = re.search(r'audit_predictions_total\{label="good",model="support:\w+"\} (\d+)', gateway.metrics())
    assert counted
    assert int(counted[1]) >= 1


def test_an_error_of_the_audited_service_reaches_the_outer_one_with_its_status(gateway: Any) -> None:
    answer = gateway.post("/why", {"prediction_id": "nobody's"})
    assert answer.status_code == 404
    assert "prediction_not_found" in answer.text


class Bomb:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('unpickled')",))


def test_nobody_else_can_have_the_inner_service_read_a_pickle(gateway: Any) -> None:
    (inner,) = gateway.workers("Reviews")
    address = json.loads(inner.environ()["BENTOML_RUNNER_MAP"])["Reviews"]
    if address.startswith("file:"):
        folder = Path(unquote(urlsplit(address).path)).parent
        assert folder.stat().st_mode & 0o077 == 0, "others could open the socket"
        return
    with httpx.Client(base_url=address.replace("tcp:", "http:"), trust_env=False) as client:
        for path in ("/classify", "/upload", "/audit/explain", "/nowhere"):
            answer = client.post(path, content=pickle.dumps(Bomb()), headers={"content-type": PICKLED})
            assert answer.status_code == 415, (path, answer.text)
        assert client.post("/upload", files={"file": ("two.bin", b"x" * 2_000_000)}).json() == 2_000_000
        assert client.post("/classify", json={"message": FINE}).json()["mood"] == "good"


def test_switched_off_the_service_is_the_bare_one_without_index_and_config(
    own: Path, start_server: Any, tmp_path: Path
) -> None:
    (tmp_path / "service.py").write_text(shown("your_own_service.md", "after"))
    (tmp_path / "gateway.py").write_text(shown("your_own_service.md", "gateway"))
    shutil.copytree(own / "support", tmp_path / "support")
    server = start_server("gateway:Gateway", cwd=tmp_path, env={"AUDIT_ENABLED": "0"})
    assert server.post("/read", {"text": FINE}).json() == {"good": True, "prediction_id": None}
    assert server.post("/why", {"prediction_id": "x"}).status_code == 404
    assert server.workers("Reviews")
    assert not server.workers("influence_engine")
    assert "audit_" not in server.metrics()
    assert not {path.name for path in tmp_path.iterdir()} & {"state", "configs", "index", "audit"}


# Several models


def test_one_service_with_two_models_explains_each_by_its_own(desk: Path, start_server: Any) -> None:
    server = start_server("service:Desk", cwd=desk)
    ids = {path: server.post(f"/{path}", {"text": FINE}).json()["prediction_id"] for path in ("mood", "hurry")}
    for path, config in (("mood", "sentiment"), ("hurry", "urgency")):
        question = {"prediction_id": ids[path], "top_k": 2}
        found = wait_for_engine(lambda question=question: server.post("/audit/explain", question))
        assert (found["index"]["tag"], found["prediction_id"]) == (config, ids[path])
        asked = server.post("/audit/explain", {"config": config, "input": {"text": FINE}, "top_k": 2})
        assert asked.json()["index"]["tag"] == config
        assert server.post("/audit/index", {"config": config}).json()["state"] == "ready"
        assert re.search(rf'audit_predictions_total\{{label="\w+",model="{config}:\w+"\}} 1\.0', server.metrics())
    batch = server.post("/audit/explain_batch", [{"prediction_id": one} for one in ids.values()]).json()
    assert [one["index"]["tag"] for one in batch] == ["sentiment", "urgency"]
    feedback = [{"prediction_id": one, "label": "good"} for one in reversed(ids.values())]
    assert server.post("/audit/feedback", {"items": feedback}).json()["recorded"] == 2
    assert len(server.workers("influence_engine")) == 1
    assert {path.name for path in (desk / "state").iterdir()} == {"sentiment", "urgency"}


def test_several_services_share_one_engine(desk: Path, start_server: Any) -> None:
    server = start_server("letters:Letters", cwd=desk)
    answer = server.post("/read", {"text": FINE}).json()
    for model, config in (("mood", "sentiment"), ("urgency", "urgency")):
        question = {"prediction_id": answer[model]["prediction_id"], "model": model}
        found = wait_for_engine(lambda question=question: server.post("/why", question))
        assert found["index"]["tag"] == config
    assert len(server.workers("influence_engine")) == 1

"""The built bento, with the network off."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
OFFLINE = Path(__file__).parent / "apps" / "offline"

REGISTER = """
import sys
from audit_service.config import load_config
from audit_service.workflows.export import register
from audit_service.workspace import Workspace
from influence_engine import InfluenceIndex
from influence_engine.index.calibration import Calibration, TierError

config = load_config(sys.argv[1])
print(register(Workspace(config)))
print(register(Workspace(config)))
index = InfluenceIndex.open(config.index_folder)
manifest = (index.folder / "manifest.json").read_bytes()
tiers = {"estimated": TierError(spread=0.5, share=0.25, agreement=0.9, slope=1.0)}
index.save_calibration(
    Calibration(about=index.about_calibration(), retrainings=5, queries=8, nonlinearity=0.1, tiers=tiers)
)
try:
    print(register(Workspace(config)))
finally:
    (index.folder / "calibration.json").unlink()  # the project is other tests', too
    (index.folder / "manifest.json").write_bytes(manifest)
"""

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def bento_home(small_project: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BENTOML_HOME with the bento built from a project's folder, by the commands a user would type."""
    home = tmp_path_factory.mktemp("home")
    project = tmp_path_factory.mktemp("context")
    for package in ("audit_service", "influence_engine", "bentos"):
        shutil.copytree(ROOT / package, project / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(small_project.root / "configs", project / "configs")
    shutil.copyfile(ROOT / "bentofile.yaml", project / "bentofile.yaml")
    environment = {
        **os.environ,
        "BENTOML_HOME": str(home),
        "BENTOML_DO_NOT_TRACK": "True",
        "PYTHONPATH": str(OFFLINE),
    }
    config = small_project.environment["BENTO_AUDIT_CONFIG"]
    done = _run([sys.executable, "-c", REGISTER, config], ROOT, environment)
    first, again, checked = done.splitlines()[-3:]
    assert first == again, "what is unchanged was registered twice"
    assert checked != again, "what a check found has to travel with the index"
    _run([sys.executable, "-m", "bentoml", "build"], project, environment)
    shutil.rmtree(project)
    return home


def test_a_built_bento_predicts_and_explains_in_another_folder_with_the_network_off(
    bento_home: Path, start_server: Any, tmp_path: Path
) -> None:
    server = start_server(
        "sentiment:latest", cwd=tmp_path, env={"BENTOML_HOME": str(bento_home), "PYTHONPATH": str(OFFLINE)}
    )
    server.wait_until_explaining()
    prediction = server.post("/predict", {"text": "a warm, funny and wise film"}).json()
    answer = server.post("/audit/explain", {"prediction_id": prediction["prediction_id"], "top_k": 3})
    assert answer.status_code == 200, answer.text
    explanation = answer.json()
    assert explanation["quality"]["parity"] is True
    assert explanation["quality"]["agreement"] == 0.9
    assert explanation["differences"]["base_prediction"] is not None
    assert explanation["model"]["tag"].startswith("sentiment-model:")
    assert explanation["index"]["tag"].startswith("sentiment-index:")
    assert "OFFLINE" not in server.log.read_text()
    # State never lies inside a bento.
    assert (bento_home / "audit" / "sentiment" / "predictions.sqlite").is_file()
    assert not list((bento_home / "bentos").rglob("predictions.sqlite"))


def test_the_bento_asks_for_the_dependencies_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for name in ("bentofile.yaml", "bentos/sentiment/bentofile.yaml"):
        bento = yaml.safe_load((ROOT / name).read_text())
        assert bento["python"]["packages"] == project["project"]["dependencies"]


def _run(command: list[str], cwd: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "OFFLINE" not in done.stderr
    return done.stdout

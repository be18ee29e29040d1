"""The engine is a library of its own: it imports where BentoML is not installed, and quickly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SERVICE_PACKAGES = {"audit_service", "bentoml", "_bentoml_sdk", "_bentoml_impl", "onnx", "onnxruntime", "starlette"}

BLOCK = """
import importlib.machinery, json, pkgutil, sys

class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {blocked} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Without
"""


def run(source: str, blocked: set[str]) -> list[str]:
    """Runs ``source`` in a new interpreter without the ``blocked`` packages; returns the JSON that it prints."""
    finished = subprocess.run(
        [sys.executable, "-c", BLOCK.format(blocked=sorted(blocked)) + source],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    names: list[str] = json.loads(finished.stdout)
    return names


def test_every_module_of_the_engine_imports_without_bentoml_and_the_packages_of_the_service() -> None:
    source = """
import influence_engine
names = [module.name for module in pkgutil.walk_packages(influence_engine.__path__, "influence_engine.")]
for name in names:
    __import__(name)
print(json.dumps(names))
"""

    names = run(
        source,
        blocked=SERVICE_PACKAGES,
    )

    assert "influence_engine.attribution.attributor" in names


def test_importing_the_engine_does_not_import_what_it_may_not_need() -> None:
    source = "import influence_engine\nprint(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"

    imported = run(source, blocked=set())

    assert {"bentoml", "click", "rich", "lance", "pyarrow", "transformers", "peft", "datasets"} & set(imported) == set()


def test_the_front_door_imports_without_the_packages_that_only_some_models_need() -> None:
    source = """
from influence_engine import Attributor, InfluenceIndex, TextClassification, finetune
print(json.dumps([Attributor.__name__, InfluenceIndex.__name__, TextClassification.__name__, finetune.__name__]))
"""

    names = run(source, blocked={"bentoml", "peft", "datasets", "accelerate", "onnx", "onnxruntime"})

    assert names == ["Attributor", "InfluenceIndex", "TextClassification", "finetune"]

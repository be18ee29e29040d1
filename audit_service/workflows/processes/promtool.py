"""Runs ``promtool``, the checker that comes with Prometheus."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import yaml

from influence_engine.errors import InfluenceError

SECONDS = 60
"""Time limit of a check."""


class RulesError(InfluenceError):
    """Rules are not what Prometheus reads, or cannot be checked."""

    code = "bad_rules"


def check_rules(text: str) -> str:
    """The output of ``promtool check rules`` for a file of rules, in either format.

    Raises:
        RulesError: promtool finds a mistake, or is not installed.
    """
    found = shutil.which("promtool")
    if found is None:
        raise RulesError("promtool is not installed; it comes with Prometheus (Debian: apt-get install prometheus)")
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RulesError(f"the rules are not YAML: {error}") from None
    if not isinstance(document, dict):
        raise RulesError("the rules should hold `groups`, or be a PrometheusRule")
    # promtool knows only the plain format, which the operator's PrometheusRule wraps.
    plain = document.get("spec", document) if document.get("kind") == "PrometheusRule" else document
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rules.yml"
        file.write_text(yaml.safe_dump(plain, allow_unicode=True), encoding="utf-8")
        finished = subprocess.run(
            [found, "check", "rules", str(file)], capture_output=True, text=True, timeout=SECONDS, check=False
        )
        said = (finished.stdout + finished.stderr).replace(str(file), "the rules").strip()
    if finished.returncode != 0:
        raise RulesError(said)
    return said

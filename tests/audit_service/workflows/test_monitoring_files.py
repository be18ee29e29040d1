"""Rules and dashboards as files: whose alerts are missing is said, and every document has its file."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from audit_service.config import load_config
from audit_service.workflows.monitoring_files import render_rules, write_dashboards


def test_a_config_without_a_baseline_gets_recording_rules_and_is_named(films: Path, tmp_path: Path) -> None:
    rendered = render_rules([load_config("films")], "prometheus")
    rendered.write(tmp_path / "new" / "rules.yml")

    assert rendered.without_baseline == ["films"]
    assert rendered.series == {}
    written = yaml.safe_load((tmp_path / "new" / "rules.yml").read_text(encoding="utf-8"))
    assert written["groups"] == rendered.groups
    rules = [rule for group in rendered.groups for rule in group["rules"]]
    assert any("record" in rule for rule in rules)
    assert not any("Drift" in rule.get("alert", "") for rule in rules)


def test_every_dashboard_has_a_file_named_by_its_uid(tmp_path: Path) -> None:
    files = write_dashboards({"one": {"b": 1, "a": 2}, "two": {}}, tmp_path / "new")

    assert [file.name for file in files] == ["one.json", "two.json"]
    assert json.loads(files[0].read_text(encoding="utf-8")) == {"a": 2, "b": 1}

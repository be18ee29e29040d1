"""Every code of an error stands in docs/errors.md with its status, and one mistake has one code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import influence_engine.errors
from audit_service.config.errors import ConfigError
from audit_service.errors import ANSWERED_AS, ServiceError, body_of, kinds, status_of
from audit_service.serving.described_endpoints import ANYWHERE, AUDITED, ENDPOINTS
from audit_service.serving.error_responses import CODES
from influence_engine.errors import DataError, InfluenceError, InputError, SettingsError, TierUnavailableError

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
ANSWERED = {code: int(status) for code, status in re.findall(r"^\| `(\w+)` \| (\d{3}) \| .+ \| .+ \|$", TEXT, re.M)}
FAILED = set(re.findall(r"^\| `(\w+)` \| [^|\d][^|]* \|$", TEXT, re.M))


def families(base: type[InfluenceError]) -> Iterator[type[InfluenceError]]:
    for one in base.__subclasses__():
        yield one
        yield from families(one)


def test_the_page_has_every_code_with_its_status_and_no_other() -> None:
    assert {code: kind.status for code, kind in kinds().items()} == ANSWERED
    assert {code: status for status, code in CODES.items() if status != 422} == {
        code: ANSWERED[code] for code in CODES.values()
    }


def test_the_page_has_every_other_code_of_the_engine() -> None:
    of_the_engine = {one.code for one in families(InfluenceError) if one.__module__ == influence_engine.errors.__name__}
    here = of_the_engine | {InfluenceError.code, ConfigError.code, "job_process_ended"}

    assert here - set(ANSWERED_AS) == FAILED


def test_no_class_of_the_service_shares_a_code_with_another_status() -> None:
    statuses: dict[str, set[int]] = {}
    for one in families(ServiceError):
        statuses.setdefault(one.code, set()).add(one.status)  # type: ignore[attr-defined]

    assert {code for code, some in statuses.items() if len(some) > 1} == set()


@pytest.mark.parametrize("error", [InputError, DataError, SettingsError])
def test_a_field_that_cannot_be_used_has_one_code_whoever_finds_it(error: type[InfluenceError]) -> None:
    found = error("wrong", field="input.text")

    assert (status_of(found), body_of(found)["error"]["code"]) == (400, "invalid_request")
    assert status_of(TierUnavailableError("none")) == kinds()["tier_unavailable"].status == 422
    assert status_of(InfluenceError("a defect")) == 500


def test_codes_are_written_in_no_other_place() -> None:
    known = set(ANSWERED) | set(ANSWERED_AS)
    places = {"errors.py", "serving/error_responses.py", "serving/described_endpoints.py", "serving/openapi.py"}
    package = ROOT / "audit_service"
    found = {
        (path.relative_to(package).as_posix(), node.args[0].value)
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "error_body"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }

    assert {place for place, _ in found} <= places
    assert {code for _, code in found} <= known


def test_the_description_names_only_codes_that_there_are() -> None:
    named = {*ANYWHERE, *AUDITED, *(code for one in ENDPOINTS.values() for code in one.codes)}

    assert named <= set(kinds())

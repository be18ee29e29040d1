"""What came from outside is answered, logged and kept in one short line, and names no place of this machine."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from audit_service.errors import error_body
from audit_service.outside import said, without_folders
from audit_service.serving.log_redaction import InputRedactingFilter


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("two\nlines\r\t", "two\\nlines\\r\\t"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("left\u202eright\u2028", "left\\u202eright\\u2028"),
        ("Grüße, 名前 🙂", "Grüße, 名前 🙂"),
        ("half \ud800", "half \\ud800"),
    ],
)
def test_control_characters_are_written_as_escapes(text: str, shown: str) -> None:
    assert said(text) == shown


def test_what_is_long_is_cut_and_keeps_its_end() -> None:
    shown = said("begin " + "x" * 900_000 + " end")
    assert len(shown) < 2_000
    assert shown.startswith("begin x")
    assert shown.endswith("x end")


def test_folders_of_this_machine_are_left_out_and_addresses_stay(tmp_path: Path) -> None:
    file = tmp_path / "index" / "films" / "manifest.json"
    said_of_it = without_folders(f"{file} has changed; /audit/jobs/submit answers, /predict, too")
    assert said_of_it == ".../films/manifest.json has changed; /audit/jobs/submit answers, /predict, too"
    assert without_folders(f"see '{file}': 3 of http://host/tmp/x and 1/2") == (
        "see '.../films/manifest.json': 3 of http://host/tmp/x and 1/2"
    )


def test_no_error_is_longer_than_a_few_kilobytes(tmp_path: Path) -> None:
    error = error_body("bad_input", f"found {'x' * 900_000!r} in {tmp_path}", "input." + "\n" * 900_000)["error"]
    assert len(error["message"]) < 2_100
    assert str(tmp_path.parent) not in error["message"]
    assert len(error["field"]) < 1_000
    assert "\n" not in error["field"]


def test_names_from_a_body_forge_no_line_of_the_log() -> None:
    class Body(BaseModel, extra="forbid"):
        pass

    forged = "x\n2026-01-01 INFO all is well\x1b[2J" + "y" * 900_000
    with pytest.raises(ValidationError) as found:
        Body.model_validate({forged: 1, **{str(number): 1 for number in range(100)}})
    record = logging.LogRecord("bentoml", logging.ERROR, "", 0, "Exception on /judge", (), None)
    record.exc_info = (ValidationError, found.value, None)
    assert InputRedactingFilter().filter(record)
    assert len(record.getMessage()) < 2_000
    assert "\n" not in record.getMessage()
    assert "\x1b" not in record.getMessage()
    assert "101 invalid (x\\n2026" in record.getMessage()

"""Promise: an index's answers say what is still being made for it, for exactly as long as somebody makes it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from audit_service.artifacts.pending import LOCK, PENDING, pending_parts, pending_work
from influence_engine.errors import SettingsError


def test_parts_are_named_while_they_are_to_come_and_no_longer(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int, str]] = []
    with pending_work(tmp_path, ["index", "replayed"], lambda *said: seen.append(said)) as pending:
        assert [(one.part, one.state) for one in pending_parts(tmp_path)] == [
            ("index", "waiting"),
            ("replayed", "waiting"),
        ]
        with pending.making("index"):
            pending.progress("gradients", 3, 10, "a note")
            now = pending_parts(tmp_path)[0]
            assert (now.state, now.stage, now.done, now.total) == ("running", "gradients", 3, 10)
        assert [one.part for one in pending_parts(tmp_path)] == ["replayed"]
        pending.skip("replayed")
        assert pending_parts(tmp_path) == []
    assert seen == [("gradients", 3, 10, "a note")]
    assert not (tmp_path / PENDING).exists()


def test_a_part_that_fails_is_no_longer_to_come(tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        pending_work(tmp_path, ["intervals"]) as pending,
        pending.making("intervals"),
    ):
        raise ZeroDivisionError
    assert pending_parts(tmp_path) == []


def test_only_one_process_at_a_time_makes_parts(tmp_path: Path) -> None:
    with pending_work(tmp_path, ["index"]):
        with pytest.raises(SettingsError, match="another process is at work on the index in"):
            pending_work(tmp_path, ["replayed"]).__enter__()
        assert [one.part for one in pending_parts(tmp_path)] == ["index"]
    with pending_work(tmp_path, ["replayed"]):
        assert [one.part for one in pending_parts(tmp_path)] == ["replayed"]


def test_what_a_killed_process_left_is_not_believed(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, sys
        from pathlib import Path
        from audit_service.artifacts.pending import pending_work

        work = pending_work(Path(sys.argv[1]), ["replayed"])
        work.__enter__()
        os.kill(os.getpid(), 9)
        """
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert killed.returncode == -9
    assert (tmp_path / PENDING).is_file(), "nobody was left to remove it"
    assert pending_parts(tmp_path) == []


@pytest.mark.parametrize("written", ["", "[{", '[{"part": "unknown"}]', '{"part": "index"}'])
def test_a_file_that_cannot_be_read_says_nothing(written: str, tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    (tmp_path / PENDING).write_text(written, encoding="utf-8")
    assert pending_parts(tmp_path) == []
    assert pending_parts(tmp_path / "nowhere") == []

"""How the command line says sizes, times and progress."""

from __future__ import annotations

import pytest

from audit_service.cli.console import duration, progress_shown, size


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.42, "0.4 s"), (12.3, "12 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (950_000, "950 kB"), (23.4e6, "23 MB"), (1.44e9, "1.4 GB"), (2e12, "2.0 TB")]
)
def test_sizes_are_said_as_people_say_them(count: float, words: str) -> None:
    assert size(count) == words


def test_progress_goes_to_standard_error_with_one_line_for_a_finished_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_shown() as progress:
        for done in range(4):
            progress("fine-tuning", done, 3, f"loss {3 - done}")
        progress("fine-tuning", 3, 3)

    written = capsys.readouterr()
    assert written.out == ""
    (line,) = written.err.splitlines()
    assert line.startswith("fine-tuning: done in ")
    assert line.endswith("loss 0")

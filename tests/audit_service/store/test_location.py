"""What a service keeps is for its owner alone."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from audit_service.jobs.store import JobStore
from audit_service.store.encryption import key_of
from audit_service.store.location import private_folder
from audit_service.store.outcomes import OutcomeStore
from audit_service.store.predictions import PredictionStore


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("before", [None, 0o755, 0o770, 0o700])
def test_a_folder_is_made_or_closed(tmp_path: Path, before: int | None) -> None:
    folder = tmp_path / "state" / "films"
    if before is not None:
        folder.mkdir(parents=True)
        folder.chmod(before)
    assert private_folder(folder) == folder
    assert mode(folder) == 0o700


def test_a_folder_that_everybody_writes_to_stays_open_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o1777)
    private_folder(tmp_path)
    assert mode(tmp_path) == 0o1777
    assert "can be read by other users" in caplog.text
    tmp_path.chmod(0o700)


def test_every_store_closes_its_folder_whichever_comes_first(tmp_path: Path) -> None:
    for number, use in enumerate(
        (
            lambda folder: PredictionStore(folder).start(),
            lambda folder: OutcomeStore(folder).add([]),
            lambda folder: JobStore(folder).counts(),
            lambda folder: JobStore(folder).is_worked_on(),
            lambda folder: key_of(folder / "index.key"),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir(mode=0o755)
        use(folder)
        assert mode(folder) == 0o700
        assert all(mode(file) & 0o077 == 0 for file in folder.iterdir() if file.suffix in (".sqlite", ".key"))

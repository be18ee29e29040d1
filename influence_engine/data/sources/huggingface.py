"""Rows of a Hugging Face data set, on disk or on the hub. Needs the package ``datasets`` (extra ``data``)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from influence_engine.data.sources.table import Row, Table, similar_path, unicode_problem
from influence_engine.errors import DataError
from influence_engine.names import did_you_mean, listing

DEFAULT_SPLIT = "train"


def read_saved(folder: Path, *, name: str, split: str | None = None) -> Table:
    """Reads what ``save_to_disk`` wrote: a data set, or several splits of which ``split`` names one.

    Raises:
        DataError: there is no such folder or split, it holds something else, or ``datasets`` is not installed.
    """
    if not folder.is_dir():
        raise DataError(f"dataset: there is no folder {folder}.{similar_path(folder)}", field="dataset")
    datasets = _library("dataset")
    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"dataset: {folder} is not a folder of save_to_disk: {error}", field="dataset") from error
    if isinstance(loaded, datasets.DatasetDict):
        loaded = _split(loaded, split or DEFAULT_SPLIT, str(folder))
    elif split is not None:
        raise DataError(f"split: {folder} is one data set without splits; leave split out", field="split")
    return _table(loaded, name=name, location=str(folder))


def read_hub(identifier: str, *, name: str, subset: str | None, split: str | None, revision: str | None) -> Table:
    """Reads a data set of the hub, or of the hub's local cache.

    Raises:
        DataError: it cannot be loaded (unknown, no network, unknown split), or ``datasets`` is not installed.
    """
    datasets = _library("hub")
    try:
        loaded = datasets.load_dataset(identifier, name=subset, split=split or DEFAULT_SPLIT, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"hub: the data set {identifier!r} cannot be loaded: {error}. Check its name, subset and split; without "
            "network, save it elsewhere with save_to_disk and name the folder as `dataset`.",
            field="hub",
        ) from error
    return _table(loaded, name=name, location=f"hub data set {identifier}")


def _library(key: str) -> Any:
    try:
        return importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise DataError(
            f"{key}: Hugging Face data sets need the package `datasets`, and there is no module {error.name!r} here. "
            "Install it with `pip install 'bento-audit[data]'`, or name a csv, jsonl or parquet file.",
            field=key,
        ) from error


def _split(splits: Any, split: str, location: str) -> Any:
    if split not in splits:
        raise DataError(
            f"split: {location} has no split {split!r}; it has {listing(splits)}.{did_you_mean(split, splits)}",
            field="split",
        )
    return splits[split]


def _table(dataset: Any, *, name: str, location: str) -> Table:
    columns = list(dataset.column_names)
    names = {column: feature.names for column in columns if (feature := _class_label(dataset, column)) is not None}
    rows = []
    for line, values in enumerate(dataset, start=1):
        row = {column: _named(values[column], names.get(column)) for column in columns}
        rows.append(Row(line=line, values=row, problem=unicode_problem(row)))
    licence = (dataset.info.license or "").strip() or None
    return Table(name=name, location=location, unit="row", columns=columns, rows=rows, licence=licence)


def _class_label(dataset: Any, column: str) -> Any:
    """The column's ``ClassLabel``, also where the column holds lists of them (tags of tokens)."""
    feature = dataset.features[column]
    feature = getattr(feature, "feature", feature)
    return feature if hasattr(feature, "int2str") else None


def _named(value: Any, names: list[str] | None) -> Any:
    if names is None or value is None:
        return value
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    # The hub writes -1 for "no label".
    return names[value] if 0 <= value < len(names) else None

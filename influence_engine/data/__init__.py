"""Examples from files, hubs and packages: read, checked, given stable ids, counted."""

from influence_engine.data.loading import DataSet, load_examples, rows_digest
from influence_engine.data.packages import fetch_package, packaged_model, packages_folder
from influence_engine.data.report import BadRow, DataReport, Repeats
from influence_engine.data.settings import DataSettings

__all__ = [
    "BadRow",
    "DataReport",
    "DataSet",
    "DataSettings",
    "Repeats",
    "fetch_package",
    "load_examples",
    "packaged_model",
    "packages_folder",
    "rows_digest",
]

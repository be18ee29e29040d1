"""Examples from files, hubs and packaged data: read, checked, given stable ids, counted."""

from influence_engine.data.loading import DataSet, load_examples, rows_digest
from influence_engine.data.report import BadRow, DataReport, Repeats
from influence_engine.data.settings import DataSettings

__all__ = [
    "BadRow",
    "DataReport",
    "DataSet",
    "DataSettings",
    "Repeats",
    "load_examples",
    "rows_digest",
]

"""Readers: one file a kind of source, all giving the same table."""

from influence_engine.data.sources.open import open_table
from influence_engine.data.sources.table import Row, Table

__all__ = ["Row", "Table", "open_table"]

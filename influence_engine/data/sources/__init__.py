"""Readers of sources: one module for each kind, all of which return a ``Table``."""

from influence_engine.data.sources.open import licence_to_accept, open_table
from influence_engine.data.sources.table import Row, Table

__all__ = ["Row", "Table", "licence_to_accept", "open_table"]

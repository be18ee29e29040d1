"""The training-gradient index: format, build, verify, search."""

from influence_engine.index.building.cost_estimate import BuildPlan
from influence_engine.index.building.pipeline import current_version
from influence_engine.index.index import InfluenceIndex
from influence_engine.index.manifest import Manifest
from influence_engine.index.search import Polarity, top_rows
from influence_engine.index.settings import IndexSettings

__all__ = ["BuildPlan", "IndexSettings", "InfluenceIndex", "Manifest", "Polarity", "current_version", "top_rows"]

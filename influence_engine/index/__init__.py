"""The training-gradient index: one vector an example, whose product with a query's vector is the influence.

* ``index``: open, verify and search an index; the entry to building one
* ``building``: how an index is built, stage by stage
* ``unrolling``: ``d theta / d w`` along the training trajectory, over recorded steps or SOURCE's segments
* ``encoding``: from layer gradients to the index's ``k`` numbers
* ``replay_basis``: exactly replayed directions that correct the estimates
* ``calibration``: intervals and slope of the influences, from training again
* ``manifest``, ``store``, ``contents``: what is on disk: the manifest, the table of examples, and their texts
* ``parts``, ``known_parts``, ``file_sums``, ``upgrade``: optional parts of a version, the sums of its files among them,
  and how an older index gets them
* ``resident``, ``search``, ``ordering``: vectors in memory, the strongest rows, training examples in the index's order
* ``descriptions``: how training examples are described and grouped
* ``settings``, ``sizes``: what a user can choose, and sizes of samples and shards
"""

from influence_engine.index.building.cost_estimate import BuildPlan
from influence_engine.index.building.pipeline import current_version
from influence_engine.index.index import InfluenceIndex
from influence_engine.index.manifest import Manifest
from influence_engine.index.search import Polarity, top_rows
from influence_engine.index.settings import IndexSettings

__all__ = ["BuildPlan", "IndexSettings", "InfluenceIndex", "Manifest", "Polarity", "current_version", "top_rows"]

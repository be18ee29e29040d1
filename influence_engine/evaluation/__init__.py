"""Do the explanations say what retraining does? LDS, and what it is compared with."""

from influence_engine.evaluation.lds import Score, linear_datamodeling_score, spearman
from influence_engine.evaluation.removals import Removal, membership, random_removals
from influence_engine.evaluation.truth import Retraining

__all__ = [
    "Removal",
    "Retraining",
    "Score",
    "linear_datamodeling_score",
    "membership",
    "random_removals",
    "spearman",
]

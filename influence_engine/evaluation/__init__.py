"""Evaluation of influences against retraining: linear datamodeling score, baselines, label errors, suspects.

* ``truth``: ``Retraining``, measurements after training without some examples.
* ``comparison``: ``evaluate``, the linear datamodeling score (LDS) of the index's tiers and of ``baselines``.
* ``checking``: ``check_index``, six retrainings that calibrate an index's influences and give them intervals.
* ``planted``: ``find_planted_errors``, recall of label errors that were planted.
* ``suspects``: ``rank_suspects``, training examples by the harm they do to held-out predictions.
* ``folds``: ``CrossValidation``, out-of-sample confidence in the training labels.
"""

from influence_engine.evaluation.checking import check_index, nonlinearity
from influence_engine.evaluation.comparison import Evaluation, EvaluationPlan, evaluate, single_removals
from influence_engine.evaluation.folds import CrossValidation
from influence_engine.evaluation.lds import Score, linear_datamodeling_score, rank_agreement, spearman
from influence_engine.evaluation.planted import PlantedErrors, find_planted_errors
from influence_engine.evaluation.removals import Removal, membership, random_removals
from influence_engine.evaluation.suspects import Measure, Suspect, rank_suspects, seen_in_training
from influence_engine.evaluation.truth import Retraining

__all__ = [
    "CrossValidation",
    "Evaluation",
    "EvaluationPlan",
    "Measure",
    "PlantedErrors",
    "Removal",
    "Retraining",
    "Score",
    "Suspect",
    "check_index",
    "evaluate",
    "find_planted_errors",
    "linear_datamodeling_score",
    "membership",
    "nonlinearity",
    "random_removals",
    "rank_agreement",
    "rank_suspects",
    "seen_in_training",
    "single_removals",
    "spearman",
]

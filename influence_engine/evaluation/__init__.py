"""Do the explanations say what retraining does? LDS, and what it is compared with."""

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

"""Ranks training examples by the harm they do to held-out predictions: where to start when training data are cleaned.

An example is suspect where training with it lowered the log-odds of the true labels of held-out examples. Other
measures that are used for the same purpose stand beside that harm: the training loss, the self-influence (Koh and Liang
2017) and the out-of-sample confidence that confident learning ranks by (``folds``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from influence_engine.attribution.attributor import Attributor
from influence_engine.digests import json_digest
from influence_engine.errors import SettingsError
from influence_engine.evaluation.baselines import training_losses
from influence_engine.index.ordering import in_index_order
from influence_engine.index.store import RESERVED
from influence_engine.progress import Progress, silent
from influence_engine.tasks import Example
from influence_engine.training.identity import check_examples

Measure = Literal["harm", "loss", "self_influence", "out_of_sample_confidence"]
"""Measures that suspects are ranked by: the largest first, of the confidence the smallest first."""


@dataclass(frozen=True)
class Suspect:
    """One training example and why it may deserve a look.

    Attributes:
        example_id: Its id in the data set.
        row: Its row in the index.
        label: Its label, as in the index.
        source: Where it is from.
        harm: By how much training with it lowered the held-out examples' measurements (for classification: the log-odds
            of their true labels), on average, in the measurement's units; positive is harmful.
        harmed_share: Share of the held-out examples whose measurement it lowered.
        loss: Training loss under the fine-tuned model.
        self_influence: By how much training with it lowered its own loss; large where it had to be memorised.
        out_of_sample_confidence: Probability of its label under a model not trained on it; None where not computed.
        rank_by_harm: 1 is the most harmful.
        rank_by_loss: 1 has the highest loss.
        rank_by_self_influence: 1 has the highest.
        rank_by_out_of_sample_confidence: 1 has the lowest; None where not computed.
        fields: The task's fields of the example, such as its text.
    """

    example_id: str
    row: int
    label: str | None
    source: str | None
    harm: float
    harmed_share: float
    loss: float
    self_influence: float
    out_of_sample_confidence: float | None
    rank_by_harm: int
    rank_by_loss: int
    rank_by_self_influence: int
    rank_by_out_of_sample_confidence: int | None
    fields: dict[str, Any]

    def rank_by(self, measure: Measure) -> int | None:
        """The example's rank by a measure; None where that has not been computed."""
        rank: int | None = getattr(self, f"rank_by_{measure}")
        return rank


def rank_suspects(
    attributor: Attributor,
    held_out: Sequence[Example],
    train: Sequence[Example],
    *,
    by: Measure = "harm",
    out_of_sample_confidence: Mapping[str, float] | None = None,
    batch_size: int = 32,
    progress: Progress = silent,
) -> list[Suspect]:
    """All training examples as suspects, the most suspect first.

    The harm of example ``i`` is ``-mean_q influence_i(q)`` over the held-out examples ``q``, each with its true label
    as the target.

    Args:
        attributor: Attributor of the fine-tuned model.
        held_out: Labelled examples that the model was not trained on.
        train: The examples of the index, in any order.
        by: The measure that they are sorted by.
        out_of_sample_confidence: Confidence in the given label by example id, from ``CrossValidation``.
        batch_size: Held-out examples at once; ``[batch_size, N]`` scores are in memory at a time.
        progress: Called after every batch.

    Raises:
        DataError: no held-out examples, or one without a label; a loss that is not a number.
        DigestMismatchError: ``train`` is not what the index was built from.
        SettingsError: they are to be sorted by a confidence that is not given.
    """
    if by == "out_of_sample_confidence" and out_of_sample_confidence is None:
        raise SettingsError(
            "ranking by out_of_sample_confidence needs the confidences: CrossValidation computes them", field="by"
        )
    check_examples(attributor.task, held_out, "held-out")
    index = attributor.index
    examples = in_index_order(index, attributor.task, train)
    harm, harmed = _harm(attributor, held_out, batch_size, progress)
    losses = training_losses(attributor.model, attributor.task, examples, progress)
    own = index.self_influences()
    ranks = {"harm": _ranks(-harm), "loss": _ranks(-losses), "self_influence": _ranks(-own)}
    confidence: list[float] | None = None
    if out_of_sample_confidence is not None:
        confidence = [out_of_sample_confidence[example_id] for example_id in index.example_ids]
        ranks["out_of_sample_confidence"] = _ranks(torch.tensor(confidence, dtype=torch.float64))
    columns = (harm.tolist(), harmed.tolist(), losses.tolist(), own.tolist())
    suspects = [
        Suspect(
            example_id=index.example_ids[row],
            row=row,
            label=index.labels[row],
            source=examples[row].get("source"),
            harm=its_harm,
            harmed_share=its_share,
            loss=its_loss,
            self_influence=its_own,
            out_of_sample_confidence=None if confidence is None else confidence[row],
            rank_by_harm=ranks["harm"][row],
            rank_by_loss=ranks["loss"][row],
            rank_by_self_influence=ranks["self_influence"][row],
            rank_by_out_of_sample_confidence=None if confidence is None else ranks["out_of_sample_confidence"][row],
            fields=_fields(examples[row]),
        )
        for row, (its_harm, its_share, its_loss, its_own) in enumerate(zip(*columns, strict=True))
    ]
    order = ranks[by]
    return sorted(suspects, key=lambda suspect: order[suspect.row])


def seen_in_training(held_out: Sequence[Example], train: Sequence[Example]) -> list[str]:
    """Ids of held-out examples that are training examples, too: equal in all fields of the task.

    The harm to such an example is also that of training with itself.
    """
    trained = {json_digest(_fields(example)) for example in train}
    return [str(example["example_id"]) for example in held_out if json_digest(_fields(example)) in trained]


def _harm(
    attributor: Attributor, held_out: Sequence[Example], batch_size: int, progress: Progress
) -> tuple[Tensor, Tensor]:
    """Mean harm and share of held-out examples harmed, both ``[N]`` in double precision."""
    harm = torch.zeros(len(attributor.index), dtype=torch.float64)
    harmed = torch.zeros_like(harm)
    for start in range(0, len(held_out), batch_size):
        chunk = held_out[start : start + batch_size]
        scores = attributor.scores(chunk, "best", batch_size=batch_size)
        harm -= scores.sum(0, dtype=torch.float64)
        harmed += (scores < 0).sum(0)
        progress("influence on held-out examples", start + len(chunk), len(held_out))
    return harm / len(held_out), harmed / len(held_out)


def _ranks(values: Tensor) -> list[int]:
    """Ranks from 1 for the smallest value; of equal values the first row comes first."""
    ranks = torch.empty(len(values), dtype=torch.long)
    ranks[values.argsort(stable=True)] = torch.arange(1, len(values) + 1)
    return ranks.tolist()


def _fields(example: Example) -> dict[str, Any]:
    return {key: value for key, value in example.items() if key not in RESERVED}

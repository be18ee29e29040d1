"""Aggregates influence over many explanations: training examples, and groups of them, that drive several answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

EXAMPLES_SHOWN = 20
GROUPS_SHOWN = 20


@dataclass
class SharedInfluence:
    """Sums over explanations, for each of ``N`` training examples in index order.

    Attributes:
        explained: Number of explanations that have been added.
        influence: ``[N]``, double precision: sum of the example's influences, in the measurement's units.
        share: ``[N]``, double precision: sum of the example's shares of an explanation's whole absolute influence.
        proponents: ``[N]``, integers: explanations that returned the example as a proponent.
        opponents: ``[N]``, integers: explanations that returned it as an opponent.
    """

    explained: int
    influence: Tensor
    share: Tensor
    proponents: Tensor
    opponents: Tensor

    @classmethod
    def none_of(cls, count: int) -> SharedInfluence:
        """The sums over no explanation, for an index with ``count`` examples."""
        return cls(
            explained=0,
            influence=torch.zeros(count, dtype=torch.float64),
            share=torch.zeros(count, dtype=torch.float64),
            proponents=torch.zeros(count, dtype=torch.int64),
            opponents=torch.zeros(count, dtype=torch.int64),
        )

    def add(self, explanations: Sequence[Mapping[str, Any]], scores: Tensor, rows: Mapping[str, int]) -> None:
        """Adds some explanations.

        Args:
            explanations: ``Q`` of them, each with ``examples`` that have ``example_handle`` and ``polarity``.
            scores: ``[Q, N]``, the influence of every training example on each, returned or not.
            rows: Row in the index of every ``example_handle``.
        """
        absolute = scores.abs()
        whole = absolute.sum(1, keepdim=True).clamp_min(1e-30)
        self.influence += scores.sum(0, dtype=torch.float64)
        self.share += (absolute / whole).sum(0, dtype=torch.float64)
        for explanation in explanations:
            for example in explanation["examples"]:
                counts = self.proponents if example["polarity"] == "proponent" else self.opponents
                counts[rows[example["example_handle"]]] += 1
        self.explained += len(explanations)

    def most_shared(self, count: int = EXAMPLES_SHOWN) -> list[int]:
        """Rows of at most ``count`` examples that were returned: those of most explanations first.

        Among those of equally many, the ones whose summed influence is largest in absolute value come first.
        """
        returned = self.proponents + self.opponents
        rows: list[int] = returned.nonzero().flatten().tolist()
        return sorted(rows, key=lambda row: (-int(returned[row]), -abs(float(self.influence[row]))))[:count]


def shared_examples(
    shared: SharedInfluence, rows: Sequence[int], described: Iterable[Mapping[str, Any]], text: str | None
) -> list[dict[str, Any]]:
    """The sums for some training examples with their descriptions, in the order of ``rows``.

    Args:
        shared: The sums.
        rows: Rows of the examples, as ``most_shared`` gives them.
        described: Their descriptions by ``InfluenceIndex.describe``.
        text: The field that holds an example's text, where the task has one.

    Returns:
        For each ``example_handle``; in how many ``explanations`` it was returned, of these as one of the
        ``proponents`` and of the ``opponents``; ``influence``, summed over all explanations; ``share`` of all absolute
        influence, averaged over the explanations; ``label``, ``source`` and, where there is one, ``text``.
    """
    return [
        {
            "example_handle": one["example_handle"],
            "explanations": int(shared.proponents[row] + shared.opponents[row]),
            "proponents": int(shared.proponents[row]),
            "opponents": int(shared.opponents[row]),
            "influence": float(shared.influence[row]),
            "share": float(shared.share[row]) / max(shared.explained, 1),
            "label": one["label"],
            "source": one["source"],
            **({"text": one["fields"][text]} if text in one["fields"] else {}),
        }
        for row, one in zip(rows, described, strict=True)
    ]


def shared_groups(
    shared: SharedInfluence, labels: Sequence[str | None], sources: Sequence[str | None], count: int = GROUPS_SHOWN
) -> list[dict[str, Any]]:
    """The sums for groups of training examples by label and source, those with the largest share of influence first.

    Args:
        shared: The sums.
        labels: ``N`` labels, in index order.
        sources: ``N`` sources, in index order.
        count: How many groups at most.

    Returns:
        For each group ``label`` and ``source``; how many ``examples`` it has and which ``share_of_examples`` that is;
        its ``share`` of all absolute influence, averaged over the explanations; ``influence``, summed over its examples
        and all explanations; how often its examples were returned as ``proponents`` and as ``opponents``.
    """
    if shared.explained == 0:
        return []
    numbers: dict[tuple[str | None, str | None], int] = {}
    group_of = torch.tensor([numbers.setdefault(key, len(numbers)) for key in zip(labels, sources, strict=True)])

    def totals(values: Tensor) -> list[Any]:
        found: list[Any] = torch.zeros(len(numbers), dtype=values.dtype).scatter_add_(0, group_of, values).tolist()
        return found

    columns = [torch.ones_like(group_of), shared.share, shared.influence, shared.proponents, shared.opponents]
    groups = [
        {
            "label": label,
            "source": source,
            "examples": examples,
            "share_of_examples": examples / len(labels),
            "share": share / shared.explained,
            "influence": influence,
            "proponents": proponents,
            "opponents": opponents,
        }
        for (label, source), examples, share, influence, proponents, opponents in zip(
            numbers, *map(totals, columns), strict=True
        )
    ]
    return sorted(groups, key=lambda group: -group["share"])[:count]

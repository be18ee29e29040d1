"""The scheme BIO (Ramshaw and Marcus 1995): tags of words that say where an entity begins, goes on, and is none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

OUTSIDE = "O"
"""The tag of a word outside of any entity, and the label of a target that says so."""


class BioTags:
    """``O``, and ``B-TYPE`` and ``I-TYPE`` for each type of entity, by number.

    Args:
        labels: The types.

    Attributes:
        names: The tags.
        outside: The number of ``O``.
    """

    outside = 0

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = list(labels)
        self.names = [OUTSIDE, *(f"{place}-{name}" for name in labels for place in "BI")]
        self._numbers = {tag: number for number, tag in enumerate(self.names)}

    def number(self, tag: str) -> int:
        """The number of a tag."""
        return self._numbers[tag]

    def label(self, number: int) -> str:
        """The type that a tag is of; ``O`` of a word outside."""
        return self.names[number].partition("-")[2] or OUTSIDE

    def span(self, label: str, count: int) -> list[int]:
        """The tags of ``count`` words that are one entity of a type, or, for ``O``, in none."""
        if label == OUTSIDE:
            return [self.outside] * count
        return [self._numbers[f"B-{label}"], *[self._numbers[f"I-{label}"]] * (count - 1)]

    def all_spans(self, count: int) -> list[list[int]]:
        """``span`` for every type and for none."""
        return [self.span(label, count) for label in (OUTSIDE, *self.labels)]

    def spans(self, numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
        """First word and one past the last of each entity; ``I-TYPE`` after another type begins one, too."""
        first, name = 0, ""
        for place, number in enumerate([*numbers, self.outside]):
            kind, _, found = self.names[number].partition("-")
            if name and (kind != "I" or found != name):
                yield first, place
                name = ""
            if found and not name:
                first, name = place, found


def confidence(shares: Tensor, first: int, last: int) -> Tensor:
    """The product of the largest probabilities of the words from ``first`` to before ``last``, of ``shares [W, C]``."""
    return shares[first:last].amax(-1).prod()

"""The objects that travel together while an index is built, and the options that a caller may leave out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, TypeVar

from influence_engine.curvature.gradient_passes import GradientPasses
from influence_engine.index.building.approximation import Approximation
from influence_engine.index.building.provenance import Provenance
from influence_engine.index.contents import Contents, Inline
from influence_engine.index.settings import IndexSettings
from influence_engine.progress import Progress, silent
from influence_engine.tasks import Example

T = TypeVar("T")


class BuildOptions(TypedDict, total=False):
    """Options that ``InfluenceIndex.build`` and ``InfluenceIndex.build_from_run`` share.

    Attributes:
        held_out: Examples that the model was not trained on. How much of their gradients' norm the index keeps is
            stored, and tells later which queries lie outside what the index represents; none by default.
        key: 32 bytes, for an index that encrypts its examples (``index.store_examples: encrypted``).
        device: Where to build and open; ``auto``, the default, is the GPU where there is one.
        progress: Called as the work goes on; shows nothing by default.
    """

    held_out: Sequence[Example]
    key: bytes | None
    device: str
    progress: Progress


DEFAULT_OPTIONS: BuildOptions = {"held_out": (), "key": None, "device": "auto", "progress": silent}


@dataclass(frozen=True)
class BuildContext:
    """What every stage of one build works with.

    Attributes:
        passes: Run the model over examples; the model, its task, its tracked layers and its device are theirs.
        examples: The training examples, in the order of the index's rows.
        settings: How to build.
        provenance: What is known of the training behind the model.
        approximation: Of which approximation the index is.
        folder: Where the stages are stored until the index is complete.
        contents: How the table stores what the examples say.
        held_out: Examples that the model was not trained on.
        progress: Called as the work goes on.
    """

    passes: GradientPasses
    examples: Sequence[Example]
    settings: IndexSettings
    provenance: Provenance
    approximation: Approximation
    folder: Path
    contents: Contents = field(default_factory=Inline)
    held_out: Sequence[Example] = ()
    progress: Progress = silent

    def within_memory(self, stage: str, work: Callable[[], T], total: int | None = None) -> T:
        """The result of ``work``, begun again with smaller batches where memory runs out, which ``progress`` hears of.

        Args:
            stage: The stage that the progress is of.
            work: Goes through batches of ``passes``.
            total: Units of the stage; by default, the training examples.

        Raises:
            RuntimeError, MemoryError: even single examples do not fit.
        """
        units = len(self.examples) if total is None else total
        return self.passes.within_memory(work, lambda note: self.progress(stage, 0, units, note))

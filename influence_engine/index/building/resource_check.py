"""Whether a build has the disk and the memory that it takes, and what is said where it has not."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from influence_engine.curvature.gradient_passes import GradientPasses
from influence_engine.errors import ResourceError
from influence_engine.index.building.approximation import Approximation
from influence_engine.index.building.cost_estimate import plan_build, what_fits, what_fits_on_disk
from influence_engine.index.settings import IndexSettings
from influence_engine.resources import free_disk, free_memory, readable_bytes
from influence_engine.tasks import Example


@dataclass(frozen=True)
class Room:
    """The room for one build.

    Attributes:
        passes: Run the model.
        examples: The training examples.
        settings: How to build.
        approximation: Of the index.
        working: Where the stages are kept until the index is complete.
    """

    passes: GradientPasses
    examples: Sequence[Example]
    settings: IndexSettings
    approximation: Approximation
    working: Path

    def require(self) -> None:
        """Checks before anything is written that the build is predicted to fit.

        Raises:
            ResourceError: it is not; the message says what would fit.
        """
        plan = plan_build(self.passes, self.examples, self.settings, self.approximation, probe=False)
        free = free_disk(self.working)
        if plan.disk_bytes - self._written() > free:
            raise self._too_little_disk("building the index needs", plan.disk_bytes, free, free)
        if plan.least_memory_bytes > free_memory(self.passes.device):
            raise ResourceError(
                f"building the index needs {readable_bytes(plan.least_memory_bytes)} of memory (estimated); "
                + what_fits(self.passes, self.examples, self.settings, self.approximation),
                field="index",
            )

    def memory_ran_out(self, said: str) -> ResourceError:
        """What to raise where memory ran out, with what fits in what is free now."""
        advice = what_fits(self.passes, self.examples, self.settings, self.approximation)
        return ResourceError(f"memory ran out while building the index ({said}); {advice}", field="index")

    def disk_ran_out(self, code: int) -> ResourceError:
        """What to raise where the disk took no more, for the reason that ``errno`` has as ``code``."""
        needed = plan_build(self.passes, self.examples, self.settings, self.approximation, probe=False).disk_bytes
        happened = f"the disk took no more while building the index ({os.strerror(code)}); in all it needs"
        free = free_disk(self.working)
        # What is free on a disk is not for somebody whose quota is used up.
        return self._too_little_disk(happened, needed, free, 0 if code == errno.EDQUOT else free)

    def _too_little_disk(self, happened: str, needed: int, free: int, usable: int) -> ResourceError:
        written = self._written()
        there, again, delete = "", "make room", ""
        if written:
            there = f" {readable_bytes(written)} of it are in {self.working} already,"
            again, delete = "make room and build again, which goes on from there", f"delete {self.working} and "
        smaller = what_fits_on_disk(self.passes, self.examples, self.settings, self.approximation, usable + written)
        return ResourceError(
            f"{happened} {readable_bytes(needed)} of disk (estimated),{there} and {readable_bytes(free)} are free; "
            f"{again}, or {delete}build a smaller one: {smaller}",
            field="index",
        )

    def _written(self) -> int:
        """Bytes that an interrupted build of the same things has left to go on from."""
        return sum(file.stat().st_size for file in self.working.rglob("*") if file.is_file())

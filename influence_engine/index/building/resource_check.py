"""Whether a build fits in the free disk and memory, and the error where it does not."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from influence_engine.errors import ResourceError
from influence_engine.index.building.context import BuildContext
from influence_engine.index.building.cost_estimate import plan_build, what_fits, what_fits_on_disk
from influence_engine.resources import free_disk, free_memory, readable_bytes


@dataclass(frozen=True)
class ResourceCheck:
    """The resource check of one build.

    Attributes:
        context: The build.
    """

    context: BuildContext

    def require(self) -> None:
        """Checks before anything is written that the build is predicted to fit.

        Raises:
            ResourceError: it is not; the message says which smaller settings would fit.
        """
        build = self.context
        plan = plan_build(build.passes, build.examples, build.settings, build.approximation, probe=False)
        free = free_disk(build.folder)
        if plan.disk_bytes - self._written() > free:
            raise self._too_little_disk("building the index needs", plan.disk_bytes, free, free)
        if plan.least_memory_bytes > free_memory(build.passes.device):
            raise ResourceError(
                f"building the index needs {readable_bytes(plan.least_memory_bytes)} of memory (estimated); "
                + what_fits(build.passes, build.examples, build.settings, build.approximation),
                field="index",
            )

    def memory_ran_out(self, reason: str) -> ResourceError:
        """The error for a build during which memory ran out; it names settings that fit in the memory free now."""
        build = self.context
        advice = what_fits(build.passes, build.examples, build.settings, build.approximation)
        return ResourceError(f"memory ran out while building the index ({reason}); {advice}", field="index")

    def disk_ran_out(self, code: int) -> ResourceError:
        """The error for a build during which the disk took no more; ``code`` is the ``errno`` of the reason."""
        build = self.context
        needed = plan_build(build.passes, build.examples, build.settings, build.approximation, probe=False).disk_bytes
        happened = f"the disk took no more while building the index ({os.strerror(code)}); in all it needs"
        free = free_disk(build.folder)
        # Where a quota is used up, free space on the disk is of no use.
        return self._too_little_disk(happened, needed, free, 0 if code == errno.EDQUOT else free)

    def _too_little_disk(self, happened: str, needed: int, free: int, usable: int) -> ResourceError:
        build, written = self.context, self._written()
        there, again, delete = "", "make room", ""
        if written:
            there = f" {readable_bytes(written)} of it are in {build.folder} already,"
            again, delete = "make room and build again, which goes on from there", f"delete {build.folder} and "
        smaller = what_fits_on_disk(build.passes, build.examples, build.settings, build.approximation, usable + written)
        return ResourceError(
            f"{happened} {readable_bytes(needed)} of disk (estimated),{there} and {readable_bytes(free)} are free; "
            f"{again}, or {delete}build a smaller one: {smaller}",
            field="index",
        )

    def _written(self) -> int:
        """Bytes of the stages that an interrupted build with the same inputs has left to go on from."""
        return sum(file.stat().st_size for file in self.context.folder.rglob("*") if file.is_file())

"""What is still being made for an index that already answers: written by whoever makes it, read by the engine.

``pending.json`` lies beside the index's versions, and whoever writes it holds a lock as long as it works. What a
process left behind that was killed is locked by nobody, and is not believed.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from pydantic import TypeAdapter

from audit_service.schemas.explain import PartName, PendingPart
from influence_engine.errors import SettingsError
from influence_engine.files import write_json
from influence_engine.progress import Progress, silent

PENDING = "pending.json"
LOCK = "pending.lock"

WRITTEN_EVERY_S = 1.0
PARTS = TypeAdapter(list[PendingPart])


class PendingWork:
    """Says which parts of an index are still to come; made by ``pending_work``.

    Args:
        folder: Of the index.
        parts: In the order in which they will be made.
        progress: Called with everything that ``progress`` is called with.
    """

    def __init__(self, folder: Path, parts: Sequence[PartName], progress: Progress = silent) -> None:
        self._folder = folder
        self._parts = [PendingPart(part=part) for part in parts]
        self._shown = progress
        self._stage: str | None = None
        self._began = self._next = 0.0
        self._first = 0
        self._write()

    @contextlib.contextmanager
    def making(self, part: PartName) -> Iterator[None]:
        """Names the part that is worked on in this context; when it ends well, the part is no longer to come."""
        (entry,) = (one for one in self._parts if one.part == part)
        entry.state = "running"
        self._write()
        yield
        self.skip(part)

    def skip(self, part: PartName) -> None:
        """Takes back that a part will come."""
        self._parts = [one for one in self._parts if one.part != part]
        self._write()

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        """A ``Progress`` of the part that is being made."""
        self._shown(stage, done, total, note)
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._began, self._first, self._next = stage, now, done, 0.0
        running = [one for one in self._parts if one.state == "running"]
        if not running or now < self._next:
            return
        self._next = now + WRITTEN_EVERY_S
        gone, ahead = done - self._first, total - done
        left = round((now - self._began) * ahead / gone, 1) if gone > 0 else None
        self._parts[self._parts.index(running[0])] = running[0].model_copy(
            update={"stage": stage, "done": done, "total": total, "seconds_left": left}
        )
        self._write()

    def _write(self) -> None:
        write_json(self._folder / PENDING, [part.model_dump() for part in self._parts])


@contextlib.contextmanager
def pending_work(folder: Path, parts: Sequence[PartName], progress: Progress = silent) -> Iterator[PendingWork]:
    """Says of an index which parts will come, as long as the context lasts.

    Args:
        folder: Of the index.
        parts: In the order in which they will be made.
        progress: Shows how far that is.

    Raises:
        SettingsError: another process makes parts of this index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        if not _locked(lock):
            raise SettingsError(
                f"another process is at work on the index in {folder}; wait for it, or stop it", field="index"
            )
        try:
            yield PendingWork(folder, parts, progress)
        finally:
            (folder / PENDING).unlink(missing_ok=True)


def pending_parts(folder: Path) -> list[PendingPart]:
    """What a process that is running now will still give to the index in ``folder``; nothing where none is."""
    try:
        written = PARTS.validate_json((folder / PENDING).read_bytes())
        with (folder / LOCK).open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return written
    except (OSError, ValueError):
        pass
    return []


def _locked(lock: IO[str]) -> bool:
    for _ in range(10):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)  # a reader holds it for microseconds
    return False

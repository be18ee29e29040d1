"""Holds model and index of each config: loads them in the background, and again when a new index is current."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, Literal, TypeVar

from audit_service.config import AuditConfig
from audit_service.engine.batching import BatchWorker
from audit_service.engine.explaining import explain, failure, same_call
from audit_service.engine.loading import Loaded, index_version, load
from audit_service.engine.pictures import picture_of_example
from audit_service.engine.selecting import rows_of_group, rows_of_handles
from audit_service.engine.threads import ThreadChoice
from audit_service.engine.tracing import current_context, leave_spans, now_ns
from audit_service.errors import (
    EngineLoadingError,
    EngineTimeoutError,
    EngineUnavailableError,
    NothingToShowError,
    ServiceError,
)
from audit_service.monitoring.metrics import model_label
from audit_service.monitoring.model_metrics import EngineMetrics
from audit_service.schemas import EngineItem
from audit_service.workspace import Workspace
from influence_engine.errors import InfluenceError, reason_of
from influence_engine.tasks import fields_of, input_fields

WATCH_S = 1.0
RETRY_S = 15.0

logger = logging.getLogger(__name__)

State = Literal["loading", "ready", "failed"]
Result = TypeVar("Result")


class Slot:
    """One config's model and index, and the thread that loads and watches them.

    Args:
        name: The config's name.
        find_config: Reads the config; called in the thread, so that a mistake in it is a state and not a crash.
        prepare: Called with what was loaded before it answers anything.
    """

    def __init__(
        self,
        name: str,
        find_config: Callable[[], AuditConfig],
        prepare: Callable[[Loaded], None] = lambda loaded: None,
    ) -> None:
        self.name = name
        self.state: State = "loading"
        self.reason: str | None = None
        self.loaded: Loaded | None = None
        self._find_config, self._prepare = find_config, prepare
        self._version: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"load {name}", daemon=True)
        self._thread.start()

    def ready(self) -> Loaded:
        """What is loaded.

        Raises:
            EngineLoadingError: nothing is, yet.
            EngineUnavailableError: it cannot be loaded; the message says why.
        """
        if self.loaded is not None:
            return self.loaded
        if self.state == "loading":
            raise EngineLoadingError(
                f"the explanation engine is loading {self.name!r}; predictions go on, ask again shortly", retry_after=5
            )
        raise EngineUnavailableError(
            f"the explanation engine could not load {self.name!r}: {self.reason}", retry_after=int(RETRY_S)
        )

    def status(self) -> dict[str, Any]:
        """State, reason where there is one, and identity of what is loaded."""
        loaded = self.loaded
        identity = {}
        if loaded is not None:
            identity = {"model": loaded.model, "index": loaded.index, "coming": loaded.coming()}
        return {"state": self.state, "reason": self.reason, **identity}

    def close(self) -> None:
        """Stops watching."""
        self._stop.set()

    def _run(self) -> None:
        config: AuditConfig | None = None
        next_try = 0.0
        while not self._stop.is_set():
            try:
                config = config or self._find_config()
                version = index_version(config)
                changed = version != self._version
                incomplete = self.loaded is None or self.reason is not None
                if changed or (incomplete and time.monotonic() >= next_try):
                    next_try = time.monotonic() + RETRY_S
                    self._version = version
                    self._load(config)
            except Exception as error:  # whatever it is, it becomes the state that is reported
                self._fail(error)
                config = None  # the mistake may be in it, and may be mended
            self._stop.wait(WATCH_S)

    def _load(self, config: AuditConfig) -> None:
        start = time.monotonic()
        if self.loaded is None:
            self.state = "loading"
        loaded = in_short_lived_thread(partial(_loaded_and_warm, config))
        self._prepare(loaded)
        loaded = replace(loaded, metrics=counting(loaded, None if self.loaded is None else self.loaded.metrics))
        self.loaded, self.state, self.reason = loaded, "ready", None
        logger.info(
            "%s is ready to explain after %.1f s: model %.12s, index %.12s with %d rows",
            self.name,
            time.monotonic() - start,
            loaded.model["digest"],
            loaded.index["digest"],
            loaded.index["rows"],
        )

    def _fail(self, error: Exception) -> None:
        reason = reason_of(error)
        if reason != self.reason:
            logger.error(
                "%s cannot be explained: %s", self.name, reason, exc_info=not isinstance(error, InfluenceError)
            )
        # What was loaded before goes on answering; the reason says what is wrong with the newer one, which is tried
        # again: files that are mended need not get another name.
        self.state, self.reason = ("failed" if self.loaded is None else "ready"), reason


class EngineHost:
    """All that one engine process holds.

    Args:
        configs: How to read each config, by name.
    """

    def __init__(self, configs: dict[str, Callable[[], AuditConfig]]) -> None:
        self._worker: BatchWorker[tuple[Loaded, EngineItem, Any], dict[str, Any]] = BatchWorker(self._run)
        self._threads: ThreadChoice | None = None
        self.slots = {name: Slot(name, find_config, self._prepare) for name, find_config in configs.items()}

    async def explain(self, config: str, items: Sequence[EngineItem], deadline_s: float) -> list[dict[str, Any]]:
        """For each item ``{"explanation": {...}}`` or ``{"error": {...}, "status": ...}``.

        Raises:
            ServiceError: nothing can be answered: unknown config, still loading, not loadable, or too late.
        """
        loaded = self.slot(config).ready()
        deadline = time.monotonic() + deadline_s
        belongs_to = current_context() if loaded.config.monitoring.tracing else None
        futures = [
            self._worker.submit((loaded, item, belongs_to), group=(id(loaded), *same_call(item)), deadline=deadline)
            for item in items
        ]
        try:
            async with asyncio.timeout(deadline_s):
                return list(await asyncio.gather(*(asyncio.wrap_future(future) for future in futures)))
        except TimeoutError:
            raise EngineTimeoutError(
                f"not explained within {deadline_s:.1f} s; ask again shortly", retry_after=2
            ) from None

    def thumbnail(self, config: str, handle: str) -> tuple[bytes, str]:
        """A file that shows a training example, with its media type.

        Raises:
            ServiceError: unknown config or handle, nothing to show, still loading, or not loadable.
        """
        loaded = self.slot(config).ready()
        found = picture_of_example(loaded.task, loaded.attributor.index, handle)
        if found is None:
            raise NothingToShowError(
                "there is no picture of this example: it has none, or the index keeps no examples for this reader",
                field="example_handle",
            )
        return found

    async def selected(self, config: str, group: Mapping[str, str] | None, examples: Sequence[str] | None) -> int:
        """How many training examples are in a group, or have these handles.

        Raises:
            InputError: there is no such group, or no example with one of the handles.
            ServiceError: as ``explain``.
        """
        index = self.slot(config).ready().attributor.index
        rows: list[int] = []
        for column, value in (group or {}).items():
            rows += await asyncio.to_thread(rows_of_group, index, column, value)
        if examples:
            rows += await asyncio.to_thread(rows_of_handles, index, examples)
        return len(rows)

    def slot(self, config: str) -> Slot:
        """What belongs to a config; raises ``EngineUnavailableError`` where this engine does not hold it."""
        if config not in self.slots:
            held = ", ".join(self.slots) or "nothing"
            raise EngineUnavailableError(f"the engine at serve.engine_url holds {held}, not {config!r}", field="config")
        return self.slots[config]

    def _prepare(self, loaded: Loaded) -> None:
        """Chooses the number of threads for what has been loaded, in the thread that explains."""
        choice = ThreadChoice(partial(warm_up, loaded), fixed=loaded.config.serve.explain_threads)
        self._worker.between(choice.choose).result()
        self._threads = choice

    def _run(self, items: Sequence[tuple[Loaded, EngineItem, Any]]) -> list[dict[str, Any] | Exception]:
        began = time.perf_counter()
        answers = _run(items)
        if self._threads is not None and len(items) == 1:
            self._threads.took(time.perf_counter() - began)
            self._worker.between(self._threads.again)
        return answers

    def close(self) -> None:
        """Stops its threads."""
        for slot in self.slots.values():
            slot.close()
        self._worker.close()


def in_short_lived_thread(work: Callable[[], Result]) -> Result:
    """Runs ``work`` in a thread that ends with it, and returns or raises what it does.

    OpenMP gives its processors to the threads that have computed and still live: were the model loaded in a thread that
    goes on, the one that explains would be left with a single processor (twice as slow on two).
    """
    with ThreadPoolExecutor(1, thread_name_prefix="passing") as passing:
        return passing.submit(work).result()


def counting(loaded: Loaded, before: EngineMetrics | None) -> EngineMetrics:
    """The engine's metrics for what has just been loaded, after ``before``."""
    model = model_label(loaded.config.name, loaded.model["digest"])
    metrics = EngineMetrics(model) if before is None or before.model != model else before
    if before is not None and before is not metrics:
        before.retired()
    manifest = loaded.attributor.index.manifest
    created = datetime.fromisoformat(manifest.created).timestamp()
    metrics.loaded(manifest.build_digest, manifest.digests.get("data") or "", manifest.rows, created)
    return metrics


def _loaded_and_warm(config: AuditConfig) -> Loaded:
    loaded = load(Workspace(config))
    warm_up(loaded)
    return loaded


def warm_up(loaded: Loaded) -> None:
    """Explains one training example, so that the first real question does not pay for what is made once."""
    index = loaded.attributor.index
    described = index.describe([0])[0]["fields"] if len(index) else {}
    known = [field.name for field in input_fields(fields_of(loaded.task))] or list(described)
    if described and set(known) <= set(described):  # an encrypted index tells nothing of its examples without its key
        explain(loaded, [EngineItem(input={name: described[name] for name in known}, top_k=1)])


def _run(items: Sequence[tuple[Loaded, EngineItem, Any]]) -> list[dict[str, Any] | Exception]:
    loaded, _, belongs_to = items[0]
    answers: list[dict[str, Any] | Exception] = []
    try:
        answers.extend(explain(loaded, [item for _, item, _ in items]))
    except Exception as error:
        logger.exception("%d explanations failed", len(items))
        own = failure(ServiceError(f"the explanation failed: {type(error).__name__}; see the engine's log"))
        answers = [own] * len(items)
    # The stages' times are of the whole batch: they count once.
    explained = [one["explanation"] for one in answers if isinstance(one, dict) and "explanation" in one]
    if explained:
        timings = explained[0]["timings_ms"]
        if loaded.metrics is not None:
            loaded.metrics.timed(timings)
        if belongs_to is not None:
            leave_spans(timings, now_ns(), belongs_to, len(items))
    return answers

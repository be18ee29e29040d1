"""Explains a uniformly random share of the predictions in the background, for what influence drift counts.

What users ask to have explained is no sample: they ask about what looks odd. Here every prediction has the same
chance. Chosen ones wait in a short queue; what finds it full is dropped and counted, and a prediction never waits.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from audit_service.engine.client import Engine
from audit_service.errors import EngineUnavailableError
from audit_service.monitoring.model_metrics import DropMetrics, InfluenceMetrics
from audit_service.schemas import EngineItem, Tier
from influence_engine.errors import InfluenceError

TOP_K = 10
"""Of so many examples the top share is."""

BATCH = 8
DEADLINE_S = 30.0
GIVE_UP_S = 120.0
"""How long samples wait for an engine that loads or restarts."""

PAUSE_S = 1.0
IDLE_S = 5.0
"""How often ``refresh`` is called."""

logger = logging.getLogger(__name__)


class Sampler:
    """One thread that explains samples.

    Args:
        config: The config's name, by which the engine is asked.
        rate: Share of the predictions that is explained.
        waiting: Samples that wait at most.
        engine: The engine, as this process reaches it; asked for in the thread, when there is a first sample.
        drops: Where lost samples are counted.
        refresh: Called every few seconds, such as to look for another baseline; it must not raise.
    """

    def __init__(
        self,
        config: str,
        *,
        rate: float,
        waiting: int,
        engine: Callable[[], Engine],
        drops: DropMetrics,
        refresh: Callable[[], None] = lambda: None,
    ) -> None:
        self.config = config
        self.influence: InfluenceMetrics | None = None
        self.tier: Tier = "best"
        self.group_by: list[str] = ["label"]
        self._rate = rate
        self._most = waiting
        self._engine = engine
        self._drops = drops
        self._refresh = refresh
        self._waiting: deque[EngineItem] = deque()
        self._wake = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._run, name="explained samples", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops the thread; what waits is dropped and counted."""
        self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(2.0)

    def offer(self, example: Mapping[str, Any], label: str | None) -> None:
        """Chooses a prediction with probability ``rate``; takes a microsecond and never raises.

        Args:
            example: What was asked.
            label: What was predicted, on record.
        """
        if random.random() >= self._rate:
            return
        if len(self._waiting) >= self._most or self._closed:
            self._drops.dropped("sample_queue_full")
            return
        try:
            recorded = {"label": label}
            # Not validated: it is the service's own, and the engine checks what it gets.
            item = EngineItem.model_construct(
                input=dict(example),
                target=None,
                top_k=TOP_K,
                polarity="both",
                tier=self.tier,
                include=["groups"],
                group_by=self.group_by,
                recorded=recorded,
            )
        except (TypeError, ValueError):
            self._drops.dropped("sample_not_explained")
            return
        self._waiting.append(item)
        self._wake.set()

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            engine: Engine | None = None
            while not self._closed:
                self._wake.wait(IDLE_S)
                self._wake.clear()
                self._refresh()
                while self._waiting and not self._closed:
                    items = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                    try:
                        engine = engine or self._engine().another()
                        self._explain(runner, engine, items)
                    except Exception:  # a mistake with one sample must not end all later ones
                        logger.exception("%d sampled predictions were not explained", len(items))
                        self._drops.dropped("sample_not_explained", len(items))
            self._drops.dropped("sample_queue_full", len(self._waiting))
            if engine is not None:
                runner.run(engine.close())

    def _explain(self, runner: asyncio.Runner, engine: Engine, items: Sequence[EngineItem]) -> None:
        give_up = time.monotonic() + GIVE_UP_S
        while True:
            try:
                answers = runner.run(engine.explain(self.config, items, DEADLINE_S))
                break
            except EngineUnavailableError:  # it loads, restarts, or is busy with what people wait for
                if self._closed or time.monotonic() > give_up:
                    self._drops.dropped("sample_not_explained", len(items))
                    return
                time.sleep(PAUSE_S)
            except InfluenceError:
                self._drops.dropped("sample_not_explained", len(items))
                return
        for answer in answers:
            explanation = answer.get("explanation")
            if explanation is None:
                self._drops.dropped("sample_not_explained")
            elif self.influence is not None:
                quality = explanation["quality"]
                self.influence.explained(
                    explanation.get("groups") or [], quality["share_returned"], quality["outside_index"]
                )

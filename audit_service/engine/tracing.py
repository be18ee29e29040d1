"""OpenTelemetry spans of explanations: ``audit.gradient``, ``audit.search``, ``audit.fetch``; off by default.

The mathematics knows nothing of tracing: it says how long its stages took, and the spans are made of that afterwards.
BentoML sets up where spans go (its ``tracing`` configuration), and brings OpenTelemetry's API along.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from opentelemetry import context, trace

SPANS = {"gradient": "audit.gradient", "search": "audit.search", "fetch": "audit.fetch"}
"""Stage -> name of its span; the other stages leave gaps."""

NS_PER_MS = 1_000_000


def current_context() -> Any:
    """What a request belongs to; taken where the request is, used where its batch is."""
    return context.get_current()


def leave_spans(timings_ms: Mapping[str, float], ended_ns: int, parent: Any, items: int) -> None:
    """Leaves a span for each stage of a batch that has just been explained.

    Args:
        timings_ms: Stage -> milliseconds, in the order in which they ran.
        ended_ns: Unix time in nanoseconds at which the last one ended.
        parent: Context of the request that the spans belong to; of a batch, that of its first item.
        items: Explanations in the batch.
    """
    tracer = trace.get_tracer("bento-audit")
    start = ended_ns - int(sum(timings_ms.values()) * NS_PER_MS)
    for stage, spent in timings_ms.items():
        end = start + int(spent * NS_PER_MS)
        if stage in SPANS:
            span = tracer.start_span(SPANS[stage], parent, start_time=start, attributes={"audit.batch_size": items})
            span.end(end_time=end)
        start = end


def now_ns() -> int:
    """Unix time in nanoseconds, as spans want it."""
    return time.time_ns()

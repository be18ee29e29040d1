"""Spans of explanations: one a stage, where it ran, below the request it belongs to."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from audit_service.config import MonitoringSettings
from audit_service.engine.tracing import current_context, leave_spans


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Keeps the spans of a provider that only this test sees."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return exporter


def test_each_stage_leaves_a_span_of_its_own_length_below_the_request(exporter: InMemorySpanExporter) -> None:
    timings = {"gradient": 20.0, "encode": 5.0, "search": 3.0, "fetch": 1.0, "differences": 4.0}
    with trace.get_tracer("request").start_as_current_span("request"):
        leave_spans(timings, 1_000_000_000, current_context(), 3)

    *spans, request = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["audit.gradient", "audit.search", "audit.fetch"]
    assert [(span.end_time - span.start_time) / 1e6 for span in spans] == [20.0, 3.0, 1.0]
    assert spans[1].start_time - spans[0].end_time == 5_000_000
    assert {span.parent.span_id for span in spans} == {request.context.span_id}
    assert {span.attributes["audit.batch_size"] for span in spans} == {3}


def test_tracing_is_off_by_default() -> None:
    assert MonitoringSettings().tracing is False

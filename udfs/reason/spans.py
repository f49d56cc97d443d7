"""OpenTelemetry spans of calls to models and tools, by the GenAI semantic conventions. Nothing else traces.

Trace context travels in the events' `traceparent`. A fact that has none begins a trace whose id is derived from
its correlation id, and a call's span id from the call: the same log gives the same ids. Spans are sent by OTLP over
HTTP where OTEL_EXPORTER_OTLP_ENDPOINT (or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) is set, otherwise none is made.
Names and attributes: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
Prompts and replies stay out of spans: they are in `<domain>.exchanges`, which has its own access.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.trace import (
    INVALID_SPAN,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)
from opentelemetry.trace.propagation import set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from contracts.exchange import Exchange

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_next_span_id: ContextVar[int | None] = ContextVar("next_span_id", default=None)
_random = RandomIdGenerator()
_traceparent = TraceContextTextMapPropagator()


class _DerivedIds(IdGenerator):
    """The span id that the call gave, once."""

    def generate_span_id(self) -> int:
        derived = _next_span_id.get()
        _next_span_id.set(None)
        return derived or _random.generate_span_id()

    def generate_trace_id(self) -> int:
        return _random.generate_trace_id()


class Spans:
    """Spans of one domain's operator."""

    def __init__(self, domain: str) -> None:
        resource = Resource.create({"service.name": "flyball-reason", "service.namespace": domain})
        self._provider = TracerProvider(id_generator=_DerivedIds(), resource=resource, shutdown_on_exit=False)
        self._is_sent = any(os.environ.get(name) for name in _ENDPOINTS)
        if self._is_sent:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("flyball.reason")

    @contextmanager
    def asked(self, name: str, kind: str, parent: str, key: str, agent: str) -> Iterator[Span]:
        """A span around one question (`chat`) or look-up (`execute_tool`); `key` derives its id."""
        if not self._is_sent:
            yield INVALID_SPAN
            return
        _next_span_id.set(int(_hex(key, 16), 16))
        attributes = {"gen_ai.operation.name": kind, "gen_ai.agent.name": agent}
        attributes["gen_ai.request.model" if kind == "chat" else "gen_ai.tool.name"] = name
        with self._tracer.start_as_current_span(
            f"{kind} {name}", context=_traceparent.extract({"traceparent": parent}), attributes=attributes,
            kind=SpanKind.CLIENT if kind == "chat" else SpanKind.INTERNAL, record_exception=False,
        ) as span:  # fmt: skip
            try:
                yield span
            except BaseException as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(Status(StatusCode.ERROR))
                raise

    def close(self) -> None:
        self._provider.shutdown()


def tell(span: Span, exchange: Exchange) -> None:
    """What came back, as attributes."""
    span.set_attribute("gen_ai.response.id", f"{exchange.call_id}/{exchange.turn}")
    if exchange.kind == "model":
        span.set_attribute("gen_ai.response.model", exchange.name)
        span.set_attribute("gen_ai.response.finish_reasons", [exchange.finish_reason])
        span.set_attribute("gen_ai.usage.input_tokens", exchange.tokens_in)
        span.set_attribute("gen_ai.usage.output_tokens", exchange.tokens_out)


@lru_cache(maxsize=4096)
def parent_of(traceparent: str | None, correlation_id: str) -> str:
    """The trace an event belongs to: the one it names, or the one its chain derives."""
    found = trace.get_current_span(_traceparent.extract({"traceparent": traceparent or ""})).get_span_context()
    if found.is_valid:
        return str(traceparent)
    return f"00-{_hex(correlation_id, 32)}-{_hex(correlation_id, 16)}-01"


@lru_cache(maxsize=4096)
def child_of(parent: str, key: str) -> str:
    """The `traceparent` of what a call gave: the same trace, the call's span."""
    context = trace.get_current_span(_traceparent.extract({"traceparent": parent})).get_span_context()
    span = SpanContext(context.trace_id, int(_hex(key, 16), 16), is_remote=False, trace_flags=TraceFlags(context.trace_flags))
    carrier: dict[str, str] = {}
    _traceparent.inject(carrier, set_span_in_context(NonRecordingSpan(span)))
    return carrier["traceparent"]


def _hex(text: str, digits: int) -> str:
    return hashlib.sha256(f"span|{text}".encode()).hexdigest()[:digits]

"""Logs and traces.

Logs are structured lines on stderr. Traces go to an OTLP endpoint, or nowhere. Context crosses processes as a W3C
`traceparent`: in gRPC metadata, and in the Redis record of a request.
"""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from hekaton import __version__

# Names of the GenAI semantic conventions, which are still in development: kept in one place.
GEN_AI_OPERATION = "gen_ai.operation.name"
GEN_AI_MODEL = "gen_ai.request.model"
GEN_AI_INPUT_TOKENS = "gen_ai.usage.input_tokens"
GEN_AI_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
GEN_AI_FINISH_REASONS = "gen_ai.response.finish_reasons"
REQUEST_ID = "hekaton.request_id"
USER = "enduser.pseudo.id"
WORKER_ID = "hekaton.worker_id"
EPOCH = "hekaton.epoch"

TRACEPARENT = "traceparent"
_propagator = TraceContextTextMapPropagator()


def setup_logging(service: str, *, level: str, fmt: str) -> None:
    """Sends structlog and the standard library's logging to stderr, one JSON object (or one readable line) each."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.format_exc_info,
    ]
    if fmt == "json":
        renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared))
    logging.basicConfig(handlers=[handler], level=max(threshold, logging.WARNING), force=True)


@contextmanager
def tracing(service: str, instance: str, endpoint: str) -> Iterator[None]:
    """Exports this process's spans to `endpoint` until the end of the block; does nothing without one."""
    if not endpoint:
        yield
        return
    resource = Resource.create(
        {"service.name": f"hekaton-{service}", "service.instance.id": instance, "service.version": __version__}
    )
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    insecure = not endpoint.startswith("https://")
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=insecure, timeout=5), schedule_delay_millis=500)
    )
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        provider.shutdown()


def tracer() -> trace.Tracer:
    return trace.get_tracer("hekaton", __version__)


def current_traceparent(context: Context | None = None) -> str:
    """The context (the current one by default) as a W3C traceparent; empty without a recording span."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, context=context)
    return carrier.get(TRACEPARENT, "")


def context_from(traceparent: str) -> Context:
    """The context that a traceparent names; an empty one for the empty string or garbage."""
    return _propagator.extract({TRACEPARENT: traceparent} if traceparent else {}, context=Context())


def epoch_ns(monotonic_s: float) -> int:
    """A reading of time.monotonic() as a span's timestamp."""
    return time.time_ns() - int((time.monotonic() - monotonic_s) * 1e9)

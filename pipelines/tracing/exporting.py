"""Sends spans to a collector from a thread of its own. Whatever happens there, who makes spans neither waits nor fails.

OpenTelemetry is loaded where traces are configured, and nowhere else. Its global provider stays untouched: Prefect and
MLflow trace through it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from datasets.errors import OfflineDqnError
from pipelines.tracing.config import TracingConfig

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Tracer

_QUEUE, _BATCH, _EVERY_MS = 2048, 512, 1000
"""Spans that wait at most (later ones are lost), spans of a batch, and milliseconds between two batches."""

_MOST_CAUSE = 200
"""Characters of what the exporter said."""


class TracingError(OfflineDqnError):
    """Traces are configured and cannot be made."""


def trace_id_of(name: str) -> int:
    """The id of the one trace that belongs to a name: whoever knows the name finds its trace."""
    return int.from_bytes(sha256(name.encode()).digest()[:16], "big") or 1


class Spans:
    """Makes spans, and sends them when they have ended.

    Args:
        config: with an endpoint.
        resource: what stands beside every span.

    Attributes:
        n_lost: spans that the collector did not take.
        cause: of the last loss, in words.
    """

    def __init__(self, config: TracingConfig, resource: Mapping[str, str]) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import SpanLimits, TracerProvider, sampling
            from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
            from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
        except ModuleNotFoundError as error:
            raise TracingError(
                f'[tracing] needs {error.name}: pip install ".[tracing]" in the project\'s folder, or take the table '
                "out of offline_dqn.toml."
            ) from error
        self.n_lost, self.cause = 0, ""
        self._endpoint, self._timeout_s = config.endpoint, config.timeout_s
        spans = self

        class Ids(RandomIdGenerator):
            """Random, but for the trace that begins next."""

            def generate_trace_id(self) -> int:
                chosen, spans._next = spans._next, None
                return chosen or super().generate_trace_id()

        class Sender(SpanExporter):
            """Counts what is lost."""

            def __init__(self) -> None:
                self._to = OTLPSpanExporter(endpoint=config.endpoint, timeout=config.timeout_s)

            def export(self, batch: Sequence[ReadableSpan]) -> SpanExportResult:
                result = self._to.export(batch)
                spans._count(len(batch), taken=result is SpanExportResult.SUCCESS)
                return result

            def shutdown(self) -> None:
                self._to.shutdown()  # type: ignore[no-untyped-call]  # OpenTelemetry has no type there

        self._said = _overhear()
        self._next: int | None = None
        self._processor = BatchSpanProcessor(
            Sender(), max_queue_size=_QUEUE, max_export_batch_size=_BATCH, schedule_delay_millis=_EVERY_MS
        )
        provider = TracerProvider(
            sampler=sampling.ALWAYS_ON,
            resource=Resource.create({"service.name": "offline-dqn", **resource}),
            shutdown_on_exit=False,  # which would wait for half a minute
            id_generator=Ids(),
            span_limits=SpanLimits(max_attribute_length=1000),
        )
        provider.add_span_processor(self._processor)
        self.tracer: Tracer = provider.get_tracer("offline_dqn")

    def begin(self, name: str, *, trace: int, **options: Any) -> Any:
        """The first span of a trace; for one thread at a time."""
        from opentelemetry.context import Context

        self._next = trace
        return self.tracer.start_span(name, context=Context(), **options)

    def within(self, parent: Any, name: str, **options: Any) -> Any:
        """A span in another."""
        from opentelemetry.trace import set_span_in_context

        return self.tracer.start_span(name, context=set_span_in_context(parent), **options)

    def close(self) -> str:
        """Sends what waits, and says what was lost, in words; returns within the collector's time and a little."""
        ending = threading.Thread(target=self._processor.shutdown, name="last spans", daemon=True)
        ending.start()
        ending.join(self._timeout_s + 1)
        if ending.is_alive():
            return f"the trace was not delivered: {self._endpoint} did not answer in time"
        if self.n_lost:
            return f"{self.n_lost} spans of the trace were not delivered to {self._endpoint}: {self.cause}"
        return ""

    def _count(self, n: int, *, taken: bool) -> None:
        if not taken:
            self.n_lost += n
            self.cause = " ".join((self._said[-1] if self._said else "it did not take them").split())[:_MOST_CAUSE]
        self._said.clear()


def _overhear() -> list[str]:
    """What OpenTelemetry logs, for us alone: it would stand between a command and its reader."""
    said: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())
            del said[:-10]

    logger = logging.getLogger("opentelemetry")
    logger.propagate = False
    logger.handlers = [Kept()]
    return said

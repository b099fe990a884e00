"""An OpenTelemetry collector on loopback that keeps what it was sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    """One span as it arrived."""

    name: str
    trace_id: str
    span_id: str
    parent: str
    begins_ns: int
    ends_ns: int
    attributes: dict[str, Any]
    failed: bool
    said: str
    resource: dict[str, Any]


@dataclass
class Collector:
    """What arrived, and how it answers."""

    address: str = ""
    status: int = 200
    hangs_s: float = 0.0
    spans: list[Span] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)

    def of(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def wait_for(self, name: str, n: int = 1, within_s: float = 20) -> list[Span]:
        """Spans of a name, once there are n."""
        until = time.monotonic() + within_s
        while len(self.of(name)) < n and time.monotonic() < until:
            time.sleep(0.05)
        assert len(self.of(name)) >= n, [span.name for span in self.spans]
        return self.of(name)


@contextmanager
def collector() -> Iterator[Collector]:
    """Listens on a free port of loopback."""
    state = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(state.hangs_s)
            state.headers.append(dict(self.headers))
            if state.status == 200:
                state.raw.append(body)
                state.spans.extend(_spans(body))
            self.send_response(state.status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.address = f"http://127.0.0.1:{server.server_port}/v1/traces"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def _spans(body: bytes) -> Iterator[Span]:
    request = ExportTraceServiceRequest()
    request.ParseFromString(body)
    for sent in request.resource_spans:
        resource = _values(sent.resource.attributes)
        for scope in sent.scope_spans:
            for span in scope.spans:
                yield Span(
                    name=span.name,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    begins_ns=span.start_time_unix_nano,
                    ends_ns=span.end_time_unix_nano,
                    attributes=_values(span.attributes),
                    failed=span.status.code == 2,
                    said=span.status.message,
                    resource=resource,
                )


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: _value(one.value) for one in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(v) for v in value.array_value.values] if kind == "array_value" else getattr(value, kind)

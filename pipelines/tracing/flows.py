"""The trace of a night, and of the flows beside it: a span for each stage, joined to Prefect's run.

A night that died and is taken up goes on in the same trace: its id follows from when the night was begun first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from pipelines.sentry.events import in_brief
from pipelines.tracing.exporting import Spans, TracingError, trace_id_of

if TYPE_CHECKING:
    from pipelines.metrics.usage import StageUsage
    from pipelines.workspace import Workspace


def begin_trace(workspace: Workspace, flow: str, began: str, **attributes: Any) -> FlowTrace:
    """The trace of a flow; one that does nothing where `[tracing]` has no endpoint.

    Args:
        flow: its name.
        began: what the trace's id follows from, together with the contract's name.
        attributes: of the first span.
    """
    config, problem = workspace.config.tracing, workspace.contract.name
    if config.endpoint is None:
        return FlowTrace()
    trace = trace_id_of(f"{problem} {flow} {began}")
    try:
        spans = Spans(config, {"offline_dqn.problem": problem, "offline_dqn.workspace": workspace.root.name})
    except (TracingError, OSError, ValueError) as error:
        return FlowTrace(warning=f"{flow} has no trace: {error}")
    return FlowTrace(spans, spans.begin(flow, trace=trace, attributes=_plain(attributes)), f"{trace:032x}")


class FlowTrace:
    """One trace. No failure in here is a failure of the flow.

    Args:
        spans: makes and sends them; None for no trace.
        root: the first span.
        trace_id: in hexadecimal digits.
        warning: why there is no trace although one was asked for.
    """

    def __init__(
        self, spans: Spans | None = None, root: Any = None, trace_id: str | None = None, warning: str = ""
    ) -> None:
        self._spans, self._root, self._warning = spans, root, warning
        self._stage: Any = None
        self.trace_id = trace_id

    @contextmanager
    def stage(self, name: str, used: Callable[[], Sequence[StageUsage]] = lambda: ()) -> Iterator[None]:
        """A span of a stage.

        Args:
            used: called at its end, the newest lines of what stages took; those that began within it become its
                attributes, or spans in it where they have names of their own.
        """
        if self._spans is None:
            yield
            return
        span = self._stage = self._spans.within(self._root, name)
        try:
            yield
        except BaseException as error:
            self._fail(span, error)
            raise
        finally:
            with contextlib.suppress(OSError, ValueError, TypeError):  # a record that cannot be read is told elsewhere
                self._take_in(span, name, used())
            span.end()
            self._stage = None

    def found(self, values: Mapping[str, Any]) -> None:
        """What the stage under way found: its plain values."""
        if self._stage is not None:
            self._stage.set_attributes(_plain(values))

    def end(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """Ends and sends it; what was not delivered, in words."""
        if self._spans is None:
            return (self._warning,) if self._warning else ()
        self._root.set_attributes(_plain(values))
        return self._close()

    def fail(self, error: BaseException) -> None:
        """Ends and sends it, as of a flow that failed."""
        if self._spans is not None:
            self._fail(self._root, error)
            self._close()

    def _close(self) -> tuple[str, ...]:
        assert self._spans is not None
        self._root.end()
        lost = self._spans.close()
        self._spans = None
        return (lost,) if lost else ()

    def _take_in(self, span: Any, name: str, used: Sequence[StageUsage]) -> None:
        assert self._spans is not None
        for line in used:
            began = datetime.fromisoformat(line.began_at)
            if _ns(began) < span.start_time - 1_000_000:  # lines are written to the millisecond
                continue
            took = {
                "cpu_s": line.cpu_s,
                "peak_bytes": line.peak_bytes,
                "read_bytes": line.read_bytes,
                "written_bytes": line.written_bytes,
                "n_updates": line.n_updates,
            }
            if line.stage == name and name != "train":
                span.set_attributes(_plain(took))
                continue
            part = self._spans.within(
                span,
                {"train": "learn"}.get(line.stage, line.stage),
                start_time=_ns(began),
                attributes=_plain({**took, "ended": line.ended}),
            )
            part.end(_ns(began + timedelta(seconds=line.wall_s)))

    def _fail(self, span: Any, error: BaseException) -> None:
        from opentelemetry.trace import Status, StatusCode

        span.set_attributes({"error.type": type(error).__name__})
        span.set_status(Status(StatusCode.ERROR, in_brief(error)[:500]))


@contextmanager
def flow_trace(workspace: Workspace, flow: str, run_id: object, **attributes: Any) -> Iterator[FlowTrace]:
    """The trace of a flow without stages.

    Args:
        run_id: of Prefect's run.
        attributes: of what it was asked to do.
    """
    trace = begin_trace(workspace, flow, f"{run_id}", **attributes, **{"prefect.flow_run_id": str(run_id or "")})
    try:
        with trace.stage("run"):
            yield trace
    except BaseException as error:
        trace.fail(error)
        raise
    trace.end({})


def _ns(at: datetime) -> int:
    return round(at.timestamp() * 1e9)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those values that an attribute can hold, under our own prefix; Prefect's keep theirs."""
    kinds = (str, bool, int, float)
    return {
        name if name.startswith("prefect.") else f"offline_dqn.{name}": value
        for name, value in values.items()
        if isinstance(value, kinds) or (isinstance(value, list) and value and all(isinstance(v, str) for v in value))
    }

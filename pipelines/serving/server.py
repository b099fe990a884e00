"""Starts and ends the server: its lock, its socket, its logs, the signals."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from datasets.errors import OfflineDqnError
from datasets.locking import exclusive_lock
from pipelines.sentry.telling import ServerFailures
from pipelines.serving.acting_releases import ActingReleases
from pipelines.serving.app import build_app
from pipelines.serving.canary_looks import CanaryLooks
from pipelines.serving.caps import ActionCaps
from pipelines.serving.config import ServeConfig
from pipelines.serving.connections import timed_connection
from pipelines.serving.decision_log import DecisionLog
from pipelines.serving.messages import ActMessages
from pipelines.serving.metrics import Metrics
from pipelines.serving.outcome_service import OutcomeService
from pipelines.serving.outcomes import Outcomes, check_outcomes
from pipelines.serving.recent_decisions import RecentDecisions
from pipelines.serving.releases_watch import ReleasesWatch
from pipelines.serving.service import DecisionService
from pipelines.serving.tokens import TOKENS_VARIABLE, tokens_from
from pipelines.tracing.decisions import DecisionTraces
from pipelines.workspace import Workspace

_LOG = logging.getLogger("offline_dqn.serve")
LOCK_FILE = ".server.lock"


class ServeError(OfflineDqnError):
    """A server that cannot start as it is configured."""


def serve(workspace: Workspace, config: ServeConfig, on_start: Callable[[str, ActingReleases], None]) -> None:
    """Serves a workspace until a signal ends it; returns when every answer is given and in the log.

    Args:
        workspace: whose releases act.
        config: its `[serve]`, or what the command line made of it.
        on_start: is told the address, once requests are taken.

    Raises:
        LockedError: another server serves this workspace.
        NothingToServeError: nothing in it can act.
        NoOutcomesError: its contract does not say how rewards arrive.
        ServeError: address, certificate or tokens do not do.
    """
    tokens = tokens_from(os.environ)
    if not tokens.required and not _is_loopback(config.host):
        raise ServeError(
            f"serve.host = '{config.host}' can be reached by other machines, and no token is set. Put "
            f"{TOKENS_VARIABLE}=act:TOKEN into the environment, or serve on 127.0.0.1."
        )
    check_outcomes(workspace.contract)
    with ExitStack() as held:
        held.enter_context(
            exclusive_lock(workspace.serving_path / LOCK_FILE, f"The server of {workspace.root}", wait_s=0.0)
        )
        news = ReleasesWatch(workspace, config.ask_every_s)
        news.look()  # before anything acts; with the bucket away, what this machine has seen last acts
        acting = ActingReleases(workspace)
        contract, steps, told = workspace.contract, workspace.logs_path, workspace.outcome_logs_path
        log = held.enter_context(DecisionLog(steps, config))
        outcome_log = held.enter_context(DecisionLog(told, config))
        metrics = Metrics(acting, [("steps", log), ("outcomes", outcome_log)], news)
        outcomes = Outcomes(contract, config, outcome_log, steps=steps, outcomes=told)
        caps = ActionCaps.rebuilt(contract, steps, in_order=config.clock == "server")
        recent = RecentDecisions(contract, steps)
        failures = ServerFailures(workspace.config.sentry, contract.name)
        held.callback(failures.close)
        traces = DecisionTraces(workspace.config.tracing, contract.name)
        held.callback(traces.close)
        service = DecisionService(contract, config, acting, log, outcomes, caps, recent, metrics, traces, failures)
        held.callback(service.close)
        messages = ActMessages(contract, config.clock, config.max_batch)
        telling = OutcomeService(contract, config, outcomes, service.memory, caps, metrics, traces)
        held.callback(telling.close)
        app = build_app(service, telling, acting, messages, metrics, tokens, config, failures)
        listening = held.enter_context(_listening(config))
        tls = _tls(workspace.root, config)
        server = _Server(_uvicorn(app, config, tls))
        looks = CanaryLooks(workspace, service.now, acting.hold_canary)
        for watching in (acting, looks, news):
            watching.start()
            held.callback(watching.stop)
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        on_start(f"{'https' if tls else 'http'}://{shown}:{port}", acting)
        asyncio.run(server.serve(sockets=[listening]))
        _LOG.info("stopped; every answer is in the log")


class _Server(uvicorn.Server):
    """Ends gracefully at SIGTERM and SIGINT, and returns: the process goes on to close its logs."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _uvicorn(app: FastAPI, config: ServeConfig, tls: tuple[Path, Path] | None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=timed_connection(config.request_timeout_s),
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=config.max_waiting,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(config.shutdown_s)),
        ssl_certfile=None if tls is None else str(tls[0]),
        ssl_keyfile=None if tls is None else str(tls[1]),
    )


def _tls(root: Path, config: ServeConfig) -> tuple[Path, Path] | None:
    if config.tls_certificate is None or config.tls_key is None:
        return None
    paths = (root / config.tls_certificate, root / config.tls_key)
    for path in paths:
        if not path.is_file():
            raise ServeError(f"{path} does not exist, which serve.tls_certificate or serve.tls_key names.")
    return paths


def _listening(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # Only to a socket that says it is TCP does asyncio turn Nagle's algorithm off, which costs 40 ms an answer.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((config.host, config.port))
        listening.listen(1024)
    except OSError as error:
        listening.close()
        raise ServeError(
            f"{config.host}:{config.port} cannot be listened on: {error.strerror or error}. Another program may hold "
            "the port; choose one with --port, or serve.port."
        ) from error
    return listening


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

"""The server's endpoints: a FastAPI application around the service that decides."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pydantic_core
from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from pipelines.sentry.events import in_brief
from pipelines.sentry.telling import ServerFailures
from pipelines.serving.acting_releases import Acting, ActingReleases, LoadedRelease
from pipelines.serving.config import ServeConfig
from pipelines.serving.messages import ActMessages, OutcomeMessages
from pipelines.serving.metrics import Metrics
from pipelines.serving.outcome_service import OutcomeService
from pipelines.serving.refusals import RefusedRequestError
from pipelines.serving.service import DecisionService
from pipelines.serving.tokens import Role, Tokens

_JSON = "application/json"


def build_app(
    service: DecisionService,
    outcomes: OutcomeService,
    acting: ActingReleases,
    messages: ActMessages,
    metrics: Metrics,
    tokens: Tokens,
    config: ServeConfig,
    failures: ServerFailures,
) -> FastAPI:
    """The application that answers for a workspace."""
    title = f"offline-dqn: {messages.name}"
    app = FastAPI(title=title, version="1", docs_url=None, redoc_url=None, openapi_url=None)
    bodies = _Bodies(config)

    def refused(error: RefusedRequestError) -> Response:
        metrics.refused(error.cause)
        headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
        if error.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return _json(error.to_json(), error.status, headers)

    def allow(request: Request, role: Role | None) -> None:
        if tokens.required:
            tokens.check(request.headers.get("authorization"), role)

    async def act(request: Request) -> Response:
        arrived = time.perf_counter()
        try:
            allow(request, "act")
            asked = messages.read(await bodies.read(request))
            answers = await service.act(asked, arrived)
        except RefusedRequestError as error:
            return refused(error)
        return _json({"decisions": answers} if asked.is_batch else answers[0])

    async def tell(request: Request) -> Response:
        try:
            allow(request, "act")
            return _json(*await outcomes.take(await bodies.read(request)))
        except RefusedRequestError as error:
            return refused(error)

    async def health() -> Response:
        return _json({"status": "up"})

    async def ready(request: Request) -> Response:
        obstacle = service.obstacle()
        status, told = (200, {"ready": True}) if obstacle is None else (503, {"ready": False})
        try:
            allow(request, None)
        except RefusedRequestError:
            return _json(told, status)  # a probe has no token, and needs to know no more
        return _json({**told, **({} if obstacle is None else {"why": obstacle}), **_state(acting.current)}, status)

    async def described(request: Request) -> Response:
        try:
            allow(request, None)
        except RefusedRequestError as error:
            return refused(error)
        return _json(app.openapi())

    async def release(request: Request) -> Response:
        try:
            allow(request, "read")
        except RefusedRequestError as error:
            return refused(error)
        return _json(_releases(acting.current))

    async def page(request: Request) -> Response:
        try:
            allow(request, "read")
        except RefusedRequestError as error:
            return refused(error)
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def not_found(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        causes = {404: "not_found", 405: "method_not_allowed"}
        return refused(
            RefusedRequestError.of(causes.get(error.status_code, "http"), str(error.detail), status=error.status_code)
        )

    async def broken(_: Request, error: Exception) -> Response:  # uvicorn logs it, with its traceback
        failures.tell(error, did="internal error")
        return refused(RefusedRequestError.of("internal", in_brief(error), status=500))

    app.add_exception_handler(HTTPException, not_found)
    app.add_exception_handler(Exception, broken)
    # They read bodies themselves: what FastAPI would look for in each request costs a tenth of the answer.
    app.add_route("/v1/act", act, methods=["POST"])
    app.add_route("/v1/outcomes", tell, methods=["POST"])
    app.add_api_route("/v1/health", health, summary="Whether the server runs")
    app.add_api_route("/v1/ready", ready, summary="Whether it decides, and what stands in the way of a release")
    app.add_api_route("/v1/release", release, summary="Which releases act")
    app.add_api_route("/openapi.json", described, include_in_schema=False)
    app.add_api_route("/metrics", page, summary="Counts and times for Prometheus")
    app.openapi = lambda: _openapi(app, messages, outcomes.messages)  # type: ignore[method-assign]  # FastAPI's own way to change it
    return app


class _Bodies:
    """Reads bodies within the limits."""

    def __init__(self, config: ServeConfig) -> None:
        self._most, self._timeout_s = config.max_body_kb * 1000, config.request_timeout_s

    async def read(self, request: Request) -> bytes:
        """The whole body.

        Raises:
            RefusedRequestError: it is too large or does not arrive.
        """
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self._most:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._received(request)
        except TimeoutError:
            raise RefusedRequestError.of(
                "body_timeout", f"the body did not arrive within {self._timeout_s:g} s", status=408
            ) from None

    async def _received(self, request: Request) -> bytes:
        chunks, size = [], 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > self._most:
                raise self._too_large()
            chunks.append(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _too_large(self) -> RefusedRequestError:
        return RefusedRequestError.of(
            "body_too_large", f"a body may have {self._most // 1000:,} kB (serve.max_body_kb)", status=413
        )


def _json(values: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(pydantic_core.to_json(values), status, headers, media_type=_JSON)


def _state(now: Acting) -> dict[str, Any]:
    in_charge = now.fallback if now.disabled is not None else now.champion
    return {
        "release": in_charge.number,
        "champion": now.champion.number,
        "wanted": now.wanted,
        "canary": None
        if now.canary is None
        else {"release": now.canary.release, "share": now.canary.share, "acts": now.candidate is not None},
        "disabled": None if now.disabled is None else now.disabled.to_json(),
        "refused": {str(number): text for number, text in now.refused.items()},
    }


def _releases(now: Acting) -> dict[str, Any]:
    zero = None if now.version_zero is None else _described(now.version_zero)
    return {**_state(now), "champion_release": _described(now.champion), "version_zero": zero}


def _described(release: LoadedRelease) -> dict[str, Any]:
    return {
        "release": release.number,
        "digest": release.digest,
        "engine": release.engine,
        "loaded_at": release.loaded_at.isoformat(),
    }


def _openapi(app: FastAPI, messages: ActMessages, outcomes: OutcomeMessages) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        messages.describe(schema)
        outcomes.describe(schema)
        app.openapi_schema = schema
    return app.openapi_schema

"""Prefect's server as the scheduler runs it: with the workspace's reports beside the UI, for runs to link to."""

from __future__ import annotations

import base64
import hmac
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from datasets.errors import OfflineDqnError
from pipelines.workspace import open_workspace

if TYPE_CHECKING:
    from fastapi import FastAPI

WORKSPACE = "OFFLINE_DQN_WORKSPACE"
"""Environment variable: absolute path of the workspace."""

PAGES_URL = "OFFLINE_DQN_PAGES_URL"
"""Environment variable: where these pages are, for the runs that the scheduler starts; a browser opens no file from a
page that came over HTTP."""

PREFIX = "/offline-dqn"

_PAGES = re.compile(r"releases/[0-9]+/report\.html|drift/[0-9]{4}-[0-9]{2}-[0-9]{2}\.html")
"""What is shown: pages that hold no row of a log. Nothing else of the workspace is."""

_HEADERS = {
    # The page's own script may run, but not as this origin: it must not reach Prefect's API.
    "Content-Security-Policy": "sandbox allow-scripts allow-popups",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


LOGIN = "PREFECT_SERVER_API_AUTH_STRING"
"""Prefect's own environment variable: USER:PASSWORD that its API asks for, and these pages with it."""


def create_app() -> FastAPI:
    """Prefect's application with the pages in front; uvicorn's factory."""
    from prefect.server.api.server import create_app as prefect_app

    app = prefect_app()
    pages = pages_route(Path(os.environ[WORKSPACE]), login=os.environ.get(LOGIN))
    app.router.routes.insert(0, pages)  # Prefect's UI answers to all that is left
    return app


def pages_route(root: Path, *, login: str | None = None) -> Route:
    """The reports and drift pages of a workspace, read-only.

    Args:
        login: USER:PASSWORD that is asked for (HTTP Basic); None asks nobody.
    """

    def page(request: Request) -> Response:
        if login is not None and not _knows(request.headers.get("authorization", ""), login):
            asks = {"WWW-Authenticate": 'Basic realm="offline-dqn", charset="UTF-8"'}
            return PlainTextResponse("The login of Prefect's server opens this page.\n", status_code=401, headers=asks)
        name = request.path_params["page"]
        path = _place(root, name) if _PAGES.fullmatch(name) else None
        if path is None or not path.is_file() or not path.resolve().is_relative_to(root.resolve()):
            return PlainTextResponse("There is no such report.\n", status_code=404)
        return FileResponse(path, media_type="text/html", headers=_HEADERS)

    return Route(f"{PREFIX}/{{page:path}}", page, methods=["GET"])


def _place(root: Path, name: str) -> Path:
    """Where a page lies: releases may lie in another folder, or this machine's copy of a bucket."""
    folder, _, rest = name.partition("/")
    if folder != "releases":
        return root / name
    try:
        return open_workspace(root, follow=False).releases_path / rest
    except OfflineDqnError:  # its settings cannot be read just now
        return root / name


def _knows(header: str, login: str) -> bool:
    """Whether a request brings the login (RFC 7617)."""
    given = f"Basic {base64.b64encode(login.encode()).decode()}"
    return hmac.compare_digest(header.encode(), given.encode())

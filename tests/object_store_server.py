"""An S3 server on loopback for tests: moto's, one request at a time, in a process of its own.

Run as a program it serves until its standard input is closed, so it does not outlive whoever started it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BUCKET = "lake-bucket"
"""A bucket that every started server has."""

_ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def object_store_server() -> Iterator[dict[str, str]]:
    """Serves an empty store with the bucket `BUCKET`.

    Yields:
        The environment variables with which a process reaches it.
    """
    env = {**os.environ, "PYTHONPATH": str(_ROOT)}
    command = [sys.executable, "-m", "tests.object_store_server"]
    with subprocess.Popen(
        command, env=env, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        try:
            endpoint = server.stdout.readline().strip()
            assert endpoint.startswith("http://127.0.0.1:"), f"the S3 server did not start: {endpoint!r}"
            yield store_environment(endpoint)
        finally:
            server.stdin.close()
            try:
                server.wait(timeout=5)
            except subprocess.TimeoutExpired:
                server.kill()


def store_environment(endpoint: str) -> dict[str, str]:
    """The variables that lead to a server at an endpoint; any key opens it."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests-secret",
        "AWS_REGION": "us-east-1",
    }


def _one_at_a_time(application: Any) -> Any:
    """As S3 does, decides each conditional write alone: moto looks first and writes later, and has threads."""
    lock = threading.Lock()

    def serve(environ: Mapping[str, Any], start_response: Any) -> Any:
        with lock:
            return application(environ, start_response)

    return serve


def _main() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from moto.s3.models import s3_backends
    from werkzeug.serving import make_server

    s3_backends["123456789012"]["global"].create_bucket(BUCKET, "us-east-1")
    application = _one_at_a_time(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=MotoRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()  # ends when the starting process closes it, or dies


if __name__ == "__main__":
    _main()

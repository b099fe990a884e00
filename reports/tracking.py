"""MLflow's part in the registry: versions, aliases, tags and training runs, in one SQLite file or a shared database.

The only module that knows MLflow. Its version numbers start at 1 and are its own; a release's number is the tag
`release`.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from datasets.errors import OfflineDqnError
from reports.manifest import Manifest
from reports.shared_tracking import SharedTracking, TrackingError

Alias = Literal["champion", "candidate"]
_METRICS_PER_BATCH = 1000  # MLflow refuses larger ones
_PARAMS_PER_BATCH = 100
_PARAM_LENGTH = 6000
_BELOW = frozenset({"mlflow", "sqlalchemy", "sqlite3", "psycopg", "requests", "urllib3", "httpx", "alembic"})
"""Packages whose errors mean that the database, or the way to it, failed."""

_IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""MLflow's client would try for minutes, and hold the registry's lock meanwhile."""


class Tracking:
    """The registered model `name` in the database at `path`, or in a shared one; opened at first use."""

    def __init__(self, path: Path, name: str, shared: SharedTracking | None = None) -> None:
        self._path = path
        self._problem = re.sub(r"[/:%]", "-", name)  # MLflow refuses these in a name
        self._shared = shared

    @cached_property
    def _name(self) -> str:
        return self._problem if self._shared is None else self._shared.model_name(self._problem)

    @contextmanager
    def reached(self) -> Iterator[None]:
        """For one operation: a shared database is waited for, and what goes wrong with the database is told as such.

        Raises:
            TrackingError: it does not answer, or ceased to; a file of our own cannot be used.
        """
        with self._told():
            if self._shared is not None and "_client" in self.__dict__:
                self._shared.wait_for(self._address)
            elif self._shared is not None:
                _ = self._client
            yield

    @contextmanager
    def later(self) -> Iterator[None]:
        """For what the next operation makes good: a database that is away now does not undo what was done."""
        with suppress(TrackingError), self._told():
            yield

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OfflineDqnError:
            raise
        except Exception as error:
            if type(error).__module__.split(".")[0] not in _BELOW:
                raise
            if self._shared is None:
                raise _file_failed(self._path, error) from error
            raise self._shared.failed(error) from None  # its text may hold an address

    @cached_property
    def _address(self) -> str:
        return f"sqlite:///{self._path.resolve()}" if self._shared is None else self._shared.address()

    @cached_property
    def _client(self) -> Any:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        if self._shared is not None:
            for name, value in _IMPATIENT.items():
                os.environ.setdefault(name, value)
        with ExitStack() as held:
            if self._shared is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            else:
                held.enter_context(self._shared.ready(self._address))
            # Imported here, not above: it takes seconds, and most commands never come this far. The variables come
            # first.
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException

            for chatty in ("alembic", "mlflow"):
                logging.getLogger(chatty).setLevel(logging.WARNING if self._shared is None else logging.CRITICAL)
            client = MlflowClient(tracking_uri=self._address, registry_uri=self._address)
            try:
                client.get_registered_model(self._name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                client.create_registered_model(self._name)
            return client

    def add(self, manifest: Manifest, digest: str = "") -> None:
        """Registers a release; `digest` is that of its manifest when it was last vouched for, default the one now."""
        tags = {**_tags(manifest), "release": str(manifest.release), "digest": digest or manifest.digest}
        source = f"{self._source}/{manifest.release}"
        self._client.create_model_version(self._name, source=source, tags=tags, await_creation_for=0)

    def digests(self) -> dict[int, set[str]]:
        """By release, the digests that its manifest may have."""
        return {
            int(v.tags["release"]): {v.tags[key] for key in ("digest", "digest_expected") if v.tags.get(key)}
            for v in self._versions()
        }

    def expect(self, release: int, digest: str) -> None:
        """From now on the manifest may also have `digest`."""
        self._client.set_model_version_tag(self._name, self._version(release), "digest_expected", digest)

    def update(self, manifest: Manifest) -> None:
        """Says of a registered release what its manifest says now."""
        version = self._version(manifest.release)
        for key, value in {**_tags(manifest), "digest": manifest.digest, "digest_expected": ""}.items():
            self._client.set_model_version_tag(self._name, version, key, value)

    def aliases(self) -> dict[str, int]:
        """The release of each alias."""
        releases = {str(v.version): int(v.tags["release"]) for v in self._all_versions()}
        aliases = self._client.get_registered_model(self._name).aliases
        return {alias: releases[str(version)] for alias, version in aliases.items() if str(version) in releases}

    def set_alias(self, alias: Alias, release: int) -> None:
        """Moves an alias."""
        self._client.set_registered_model_alias(self._name, alias, self._version(release))

    def drop_alias(self, alias: Alias) -> None:
        """Takes an alias away."""
        self._client.delete_registered_model_alias(self._name, alias)

    def without_run(self) -> list[int]:
        """Releases that no finished run belongs to."""
        return sorted(int(v.tags["release"]) for v in self._versions() if "run_id" not in v.tags)

    def log_run(
        self, release: int, curves: Sequence[tuple[int, Mapping[str, float]]], params: Mapping[str, object]
    ) -> str:
        """One finished run with its metrics and parameters, in place of one that a crash cut off; returns its id."""
        from mlflow.entities import Metric, Param

        now_ms = int(time.time() * 1000)
        metrics = [Metric(name, float(v), now_ms, step) for step, values in curves for name, v in values.items()]
        settings = [Param(name, str(value)[:_PARAM_LENGTH]) for name, value in params.items()]
        client, experiment = self._client, self._experiment()
        for cut_off in client.search_runs([experiment], filter_string=f"tags.release = '{release}'"):
            client.delete_run(cut_off.info.run_id)
        run_id: str = client.create_run(
            experiment, tags={"release": str(release)}, run_name=f"release {release}"
        ).info.run_id
        for start in range(0, len(settings), _PARAMS_PER_BATCH):
            client.log_batch(run_id, params=settings[start : start + _PARAMS_PER_BATCH])
        for start in range(0, len(metrics), _METRICS_PER_BATCH):
            client.log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_BATCH])
        client.set_terminated(run_id)
        client.set_model_version_tag(self._name, self._version(release), "run_id", run_id)
        return run_id

    def _experiment(self) -> str:
        experiment = self._client.get_experiment_by_name(self._name)
        if experiment is not None:
            return str(experiment.experiment_id)
        return str(self._client.create_experiment(self._name, artifact_location=self._source))

    @property
    def _source(self) -> str:
        # Relative to the workspace, which may be moved. A tracking server refuses paths, which could be its own files.
        served = self._address.startswith("http")
        return f"offline-dqn://{self._name}/releases" if served else "releases"

    def _versions(self) -> list[Any]:
        """One version of each release: the first, where two machines that share a database have both registered it."""
        latest_first = sorted(self._all_versions(), key=lambda v: int(v.version), reverse=True)
        return list({int(v.tags["release"]): v for v in latest_first}.values())

    def _all_versions(self) -> list[Any]:
        versions: list[Any] = []
        token = None
        while token != "":
            page = self._client.search_model_versions(f"name = '{self._name}'", page_token=token)
            versions += [v for v in page if v.tags.get("release", "").isdecimal()]
            token = page.token or ""
        return versions

    def _version(self, release: int) -> str:
        return next(str(v.version) for v in self._versions() if int(v.tags["release"]) == release)


def _tags(manifest: Manifest) -> dict[str, str]:
    return {**manifest.tags, "gate": manifest.gate, "created_at": manifest.created_at.isoformat()}


def _file_failed(path: Path, error: BaseException) -> TrackingError:
    """What is wrong with a SQLite file, by the innermost cause: MLflow's own text is a page of SQL."""
    first: BaseException = error
    while (below := first.__cause__ or first.__context__) is not None:
        first = below
    why = (str(first).splitlines() or [type(first).__name__])[0][:200].rstrip(".")
    if "locked" in why:
        remedy = "Another program holds it: end that (`fuser` names it), then run the same command again."
    elif "full" in why or "disk I/O" in why:
        remedy = "See to it that the disk has room and is well, then run the same command again."
    elif "readonly" in why or "unable to open" in why:
        remedy = "See to it that it, and the folder it lies in, can be written, then run the same command again."
    else:
        remedy = (
            "Restore it from a backup; or move it away and run the same command again: it is made anew from releases/, "
            "of which nobody vouches then that they are as they were registered."
        )
    return TrackingError(f"MLflow's database {path} cannot be used: {why}. {remedy} No release is lost.")

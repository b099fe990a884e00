"""A workspace: one folder with a contract, a configuration, logs, the lake, snapshots and releases."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from importlib import resources
from pathlib import Path

from datasets.addresses import ObjectAddress
from datasets.bucket_folder import follow_bucket
from datasets.catalog import Added, QueryResult, current_catalog, query_catalog, refresh_catalog
from datasets.contract import Contract, read_contract
from datasets.errors import OfflineDqnError
from datasets.ingest import newest_timestamp
from datasets.lake import Lake, open_lake
from datasets.snapshot_bucket import pull_snapshots
from pipelines.catalog_views import evaluation_views
from pipelines.config import PipelineConfig, read_config
from pipelines.drift_history import drift_history_view
from pipelines.metrics.history import MetricHistory
from pipelines.slo.view import error_budgets_view
from reports.manifest import read_manifest
from reports.registry import Registry
from reports.release_bucket import records_in
from reports.shared_tracking import SharedTracking

SCENARIOS = ("autoscaler", "blank")

COPIES = ".store"
"""Folder of a workspace with this machine's copies of what lies in buckets. It may be deleted, and fills again."""


class WorkspaceError(OfflineDqnError):
    """A folder that is no workspace, or that cannot become one."""


@dataclass(frozen=True)
class Workspace:
    """An opened workspace. Everything in it is found relative to `root`, so the folder can be moved.

    Attributes:
        root: its folder.
        given_as_of: the instant that stages take for now; None leaves it to `ingest.as_of`.
    """

    root: Path
    given_as_of: datetime | None = None

    @cached_property
    def contract(self) -> Contract:
        """The decision problem as described now."""
        return read_contract(self.root / "contract.toml")

    @cached_property
    def config(self) -> PipelineConfig:
        """The settings of every stage."""
        return read_config(self.root / "offline_dqn.toml")

    @property
    def logs_path(self) -> Path:
        """Where logs of steps are put."""
        return self.root / "logs" / "steps"

    @property
    def outcome_logs_path(self) -> Path:
        """Where logs of outcomes are put."""
        return self.root / "logs" / "outcomes"

    @property
    def serving_path(self) -> Path:
        """What a server and those who steer it share: its lock, the kill switch, the canary."""
        return self.root / "serving"

    @property
    def snapshots_path(self) -> Path:
        """Where frozen replay datasets lie, each named by its digest."""
        return self._place(self.config.store.snapshots, self.config.store.snapshots_address)

    @property
    def releases_path(self) -> Path:
        """Where releases lie, each named by its number."""
        return self._place(self.config.store.releases, self.config.store.releases_address)

    def _place(self, folder: str, address: ObjectAddress | None) -> Path:
        """Where something lies: its folder, or the folder of this machine's copy of what lies in a bucket."""
        if address is None:
            return self.root / folder
        return self.root / COPIES / address.bucket / address.prefix

    def follow_buckets(self) -> None:
        """Brings this machine's copies of what lies in buckets up to date; where nothing does, does nothing.

        Raises:
            ObjectStoreError: a bucket cannot be asked, or holds something else.
            RecordsError: it lacks what this machine has seen in it.
        """
        address = self.config.store.snapshots_address
        if address is not None:
            follow_bucket(self.snapshots_path, str(address), kind="snapshots", problem=self.contract.name)
            pull_snapshots(self.snapshots_path)
        self.follow_releases()

    def follow_releases(self) -> None:
        """As `follow_buckets`, for the releases and what was decided about them."""
        address = self.config.store.releases_address
        if address is not None:
            follow_bucket(self.releases_path, str(address), kind="releases", problem=self.contract.name)
            records_in(self.releases_path).refresh()

    @property
    def catalog_path(self) -> Path:
        """The DuckDB file with the views."""
        return self.root / "lake.duckdb"

    @property
    def nights_path(self) -> Path:
        """One line per night."""
        return self.root / "nights.jsonl"

    @property
    def drift_path(self) -> Path:
        """Where the drift check of each night is kept, a file per month."""
        return self.root / "drift"

    @property
    def metrics_path(self) -> Path:
        """Where the metrics of each night are kept, and what each stage used, a file of each per month."""
        return self.root / "metrics"

    def release_path(self, release: int) -> Path:
        """The folder of a release."""
        return self.releases_path / str(release)

    @property
    def lake_path(self) -> Path:
        """The folder of the lake; of one in a bucket, that of this machine's copy."""
        return self.root / ("lake" if self.config.store.lake_address else self.config.store.lake)

    def open_lake(self) -> Lake:
        """The lake, made if there is none; a commit that was cut off is finished."""
        return open_lake(self.lake_path, self.contract, self.config.store.lake_address)

    @cached_property
    def registry(self) -> Registry:
        """The release registry."""
        tracking = self.config.tracking
        return Registry(
            mlflow_path=self.root / "mlflow.db",
            releases_path=self.releases_path,
            name=self.contract.name,
            shared=None
            if tracking.uri is None
            else SharedTracking(
                tracking.uri, tracking.wait_s, self.root, str(self.config.store.releases_address or "")
            ),
        )

    def as_of(self, lake: Lake) -> datetime:
        """The instant that stages take for now: as given, the clock, or the lake's newest timestamp if configured."""
        if self.given_as_of is not None:
            return self.given_as_of
        if self.config.ingest.as_of == "newest":
            return newest_timestamp(lake) or datetime.now(UTC)
        return datetime.now(UTC)

    def night(self) -> str:
        """ISO date, in UTC, of the instant that stages take for now."""
        return self.as_of(self.open_lake()).astimezone(UTC).date().isoformat()

    def refresh_catalog(self, lake: Lake) -> Path:
        """Brings `lake.duckdb` up to the lake's last commit and returns its path."""
        refresh_catalog(
            lake,
            self.catalog_path,
            as_of=self._catalog_as_of(lake),
            releases=self._release_rows(),
            snapshots=self._snapshot_folders(),
            added=self._added(),
        )
        return self.catalog_path

    def query(self, sql: str) -> QueryResult:
        """Answers one read-only SELECT over the lake's views at its last commit."""
        lake = self.open_lake()
        as_of, releases = self._catalog_as_of(lake), self._release_rows()
        snapshots = self._snapshot_folders()
        added = self._added()
        with current_catalog(
            lake, self.catalog_path, as_of=as_of, releases=releases, snapshots=snapshots, added=added
        ) as path:
            return query_catalog(path, sql, folders=[self.lake_path, self.snapshots_path, self.releases_path])

    def _added(self) -> Added:
        added = (
            evaluation_views(self.releases_path, self.releases_on_disk()),
            drift_history_view(self.drift_path),
            MetricHistory(self.metrics_path).view(),
            error_budgets_view(self.config.slo, self.metrics_path, self.nights_path),
        )
        return Added(
            [each.made_from for each in added],
            {name: rows for each in added for name, rows in each.tables.items()},
            {name: query for each in added for name, query in each.views.items()},
        )

    def _catalog_as_of(self, lake: Lake) -> datetime:
        # To the minute: a clock that runs on must not make every query rebuild the views.
        return self.as_of(lake).replace(second=0, microsecond=0) + timedelta(minutes=1)

    def _snapshot_folders(self) -> list[Path]:
        return sorted(path.parent for path in self.snapshots_path.glob("[!.]*/snapshot.json"))

    def _release_rows(self) -> list[dict[str, object]]:
        """Rows of the `releases` view, read from the folders themselves: a query needs no MLflow."""
        champion = self.registry.champion()
        rows: list[dict[str, object]] = []
        for release in self.releases_on_disk():
            manifest = read_manifest(self.release_path(release))
            if manifest is not None:
                numbers = {
                    name: float(manifest.tags[name]) for name in ("value", "difference") if name in manifest.tags
                }
                rows.append(
                    {
                        "release": release,
                        "created_at": manifest.created_at.isoformat(),
                        "gate": manifest.gate,
                        "is_champion": release == champion,
                        **numbers,
                    }
                )
        return rows

    def releases_on_disk(self) -> list[int]:
        """Numbers of the release folders."""
        found = self.releases_path.iterdir() if self.releases_path.exists() else ()
        return sorted(int(path.name) for path in found if path.is_dir() and path.name.isdecimal())


def open_workspace(root: Path, as_of: datetime | None = None, *, follow: bool = True) -> Workspace:
    """The workspace in `root`.

    Args:
        root: its folder.
        as_of: the instant that stages take for now.
        follow: whether to bring the copies of what lies in buckets up to date at once.

    Raises:
        WorkspaceError: there is none.
        SettingsError: its configuration cannot be used.
        ObjectStoreError, RecordsError: as `Workspace.follow_buckets`.
    """
    if not (root / "contract.toml").is_file() or not (root / "offline_dqn.toml").is_file():
        what = "does not exist" if not root.exists() else "is no workspace: it lacks contract.toml or offline_dqn.toml"
        raise WorkspaceError(f"{root} {what}. Name one with --workspace, or make one: offline-dqn init {root}")
    opened = Workspace(root.resolve(), as_of)
    if follow:
        opened.follow_buckets()
    return opened


def write_workspace(root: Path, scenario: str) -> Workspace:
    """Writes a new workspace: contract and configuration of a scenario, and empty folders.

    Raises:
        WorkspaceError: the scenario is unknown, or `root` already holds a workspace.
    """
    if scenario not in SCENARIOS:
        raise WorkspaceError(f"There is no scenario '{scenario}'. Known: {', '.join(SCENARIOS)}.")
    check_no_workspace(root)
    templates = resources.files("datasets") / "scenarios"
    for kind in ("steps", "outcomes"):
        (root / "logs" / kind).mkdir(parents=True, exist_ok=True)
    # The configuration is written last: without it the folder is no workspace yet.
    (root / "contract.toml").write_text((templates / f"{scenario}.toml").read_text(encoding="utf-8"), encoding="utf-8")
    settings = (templates / f"{scenario}_settings.toml").read_text(encoding="utf-8")
    (root / "offline_dqn.toml").write_text(settings, encoding="utf-8")
    return Workspace(root.resolve())


def check_no_workspace(root: Path) -> None:
    """Raises a WorkspaceError where `root` holds a workspace, or a part of one."""
    for name in ("contract.toml", "offline_dqn.toml"):
        if (root / name).exists():
            raise WorkspaceError(f"{root} already holds {name}; nothing was changed. Choose another folder.")

"""The whole configuration of a workspace: `offline_dqn.toml`, one table per stage."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from datasets.compaction import LakeConfig
from datasets.contract import Contract
from datasets.ingest import IngestConfig
from datasets.retention import RetentionConfig
from datasets.settings import Settings, build_settings, read_toml, refuse_logins
from datasets.snapshot_config import SnapshotConfig
from datasets.validation import ValidateConfig
from drift.config import DriftConfig
from offline_dqn.guard_config import GuardConfig
from offline_dqn.policy import Rule, RulePolicy
from offline_dqn.train_config import TrainConfig
from pipelines.engine_config import EngineConfig
from pipelines.metrics.config import CostConfig, MetricsConfig
from pipelines.nightly_config import NightlyConfig
from pipelines.notify.config import NotifyConfig
from pipelines.sentry.config import SentryConfig
from pipelines.serving.config import ServeConfig
from pipelines.slo.config import SloConfig
from pipelines.store_config import StoreConfig
from pipelines.tracing.config import TracingConfig
from pipelines.tracking_config import TrackingConfig
from reports.canary_config import CanaryConfig
from reports.evaluate_config import EvaluateConfig
from reports.gate import GateConfig
from reports.select_config import SelectConfig


class SimulateConfig(Settings):
    """What `offline-dqn simulate` writes; only a workspace made from a scenario has it."""

    scenario: str = "autoscaler"
    """The simulator."""
    n_episodes: int = Field(4000, gt=0)
    """Episodes per simulated night."""
    seed: int = Field(0, ge=0)
    """Of the traffic and of the acting policy's draws; each night adds its number."""


class RuleConfig(Settings):
    """One rule of version 0."""

    when: str
    """SQL over the struct `observation`."""
    action: str
    """What it does where `when` is true."""


class BaselineConfig(Settings):
    """Version 0: the rules a workspace starts with, and what one can always roll back to."""

    rules: tuple[RuleConfig, ...] = ()
    """In order; the first whose condition is true decides."""
    otherwise: str
    """The action where none is true."""
    exploration: float = Field(0.0, ge=0, le=1)
    """Share of decisions drawn uniformly from the available actions."""

    def to_policy(self, contract: Contract) -> RulePolicy:
        """The policy that acts by these rules."""
        rules = tuple(Rule(when=rule.when, action=rule.action) for rule in self.rules)
        return RulePolicy(contract=contract, rules=rules, otherwise=self.otherwise, exploration=self.exploration)


class PipelineConfig(Settings):
    """Every stage's settings."""

    store: StoreConfig = StoreConfig()
    ingest: IngestConfig = IngestConfig()
    validate_: ValidateConfig = Field(ValidateConfig(), alias="validate")
    lake: LakeConfig = LakeConfig()
    retention: RetentionConfig = RetentionConfig()
    snapshot: SnapshotConfig = SnapshotConfig()
    drift: DriftConfig = DriftConfig()
    train: TrainConfig = TrainConfig()
    select: SelectConfig = SelectConfig()
    guard: GuardConfig = GuardConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()
    canary: CanaryConfig = CanaryConfig()
    serve: ServeConfig = ServeConfig()
    metrics: MetricsConfig = MetricsConfig()
    cost: CostConfig = CostConfig()
    nightly: NightlyConfig = NightlyConfig()
    engine: EngineConfig = EngineConfig()
    notify: NotifyConfig = NotifyConfig()
    tracking: TrackingConfig = TrackingConfig()
    slo: SloConfig = SloConfig()
    tracing: TracingConfig = TracingConfig()
    sentry: SentryConfig = SentryConfig()
    baseline: BaselineConfig | None = None
    """Version 0; without it the logging policy takes its place in every comparison."""
    simulate: SimulateConfig | None = None


def read_config(path: Path) -> PipelineConfig:
    """The configuration in a TOML file.

    Raises:
        SettingsError: it is missing, not TOML, or a key or value of it is wrong; names every problem.
    """
    values = read_toml(path)
    refuse_logins(values, str(path))
    return build_settings(PipelineConfig, values, str(path))

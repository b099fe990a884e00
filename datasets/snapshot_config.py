"""What is frozen into a snapshot, and how its episodes are split."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from datasets.coverage_config import CoverageConfig
from datasets.settings import Settings


class SnapshotConfig(Settings):
    """What is frozen, and how episodes are split."""

    salt: str = ""
    """Mixed into the hash that splits clusters; empty: the contract's name. Fixed by a workspace's first snapshot."""
    train_share: float = Field(0.5, gt=0, lt=1)
    """Share of clusters that policies and encoders are fitted on. Fixed by a workspace's first snapshot."""
    select_share: float = Field(0.1, ge=0, lt=1)
    """Share of clusters on which candidates are compared; the rest is `gate`, which only judges. Fixed likewise."""
    gate: Literal["hash", "latest_nights"] = "hash"
    """What judges: the clusters that the hash leaves over, or every episode that started in the latest nights. With
    "latest_nights" the two shares divide the nights before those between `train` and `select`. Fixed likewise."""
    gate_nights: int = Field(7, ge=1)
    """Days (UTC) that judge where `gate = "latest_nights"`, whether or not each of them has logs."""
    memory: str = "1GB"
    """Limit of the memory that DuckDB may use while it sorts; the rest goes to the snapshots' folder for a while."""
    coverage: CoverageConfig = CoverageConfig()
    """How the state space is cut into regions to say where the log has been."""

    @model_validator(mode="after")
    def _leaves_a_gate(self) -> SnapshotConfig:
        if self.train_share + self.select_share >= 1:
            raise ValueError("train_share + select_share leave nothing for the gate; their sum must stay below 1")
        return self

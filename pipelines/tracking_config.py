"""Where MLflow is: the `[tracking]` table of offline_dqn.toml. The address holds a password and never stands in it."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from datasets.settings import Settings, variable_name


class TrackingConfig(Settings):
    """MLflow's database. Without an address it is `mlflow.db` in the workspace."""

    uri: str | None = None
    """Name of the environment variable that holds the address: postgresql://USER:PASSWORD@HOST/DATABASE, or that of a
    tracking server, https://HOST. Many workspaces may share one."""
    wait_s: float = Field(120.0, ge=0)
    """Seconds that an operation waits for it where it does not answer, such as while it restarts."""

    @model_validator(mode="before")
    @classmethod
    def _a_name_only(cls, values: Any) -> Any:
        # Before the fields are looked at: their errors quote the value, and an address put here by mistake is a secret.
        if isinstance(values, dict) and values.get("uri") is not None:
            variable_name(values["uri"], "uri", "OFFLINE_DQN_MLFLOW_URI")
        return values

"""`[metrics]` and `[cost]`: where metrics go, and what resources cost."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from datasets.settings import Settings, place_of_file


class MetricsConfig(Settings):
    """Where the ten metrics go each night."""

    prometheus_file: str | None = None
    """File for the node exporter's textfile collector, such as /var/lib/node_exporter/offline_dqn.prom; relative to the
    workspace. Its folder must exist. null: the file is `metrics/offline_dqn.prom` in the workspace."""
    push_gateway: str | None = None
    """Address of a Prometheus push gateway, such as http://127.0.0.1:9091; null pushes nothing."""
    push_timeout_s: float = Field(5.0, gt=0, le=60)
    """Seconds to wait for the push gateway."""
    server: str | None = None
    """Where the policy server shows its metrics, such as http://127.0.0.1:8080/metrics; without it latency and
    availability are absent."""
    nights: int = Field(7, ge=1, le=400)
    """Newest nights that each run measures again, since outcomes and late logs may still change them."""

    @field_validator("prometheus_file")
    @classmethod
    def _is_collected(cls, path: str | None) -> str | None:
        if path is not None and not path.endswith(".prom"):
            raise ValueError("the textfile collector reads files that end in .prom alone")
        return None if path is None else place_of_file(path)

    @field_validator("push_gateway", "server")
    @classmethod
    def _is_address(cls, address: str | None) -> str | None:
        if address is not None and not address.startswith(("http://", "https://")):
            raise ValueError("wants an address that begins with http:// or https://")
        if address is not None and "@" in address.split("/")[2]:
            raise ValueError("holds a user or a password; put an authenticating proxy before it instead")
        return address


class CostConfig(Settings):
    """What resources cost, and what may be spent. A price of 0 leaves a resource out."""

    currency: str = "EUR"
    """Name of the currency, as it is shown."""
    cpu_hour: float = Field(0.0, ge=0)
    """Price of an hour of one CPU."""
    memory_gb_hour: float = Field(0.0, ge=0)
    """Price of 1 GB (10^9 bytes) of memory for an hour; a stage is charged its peak."""
    read_gb: float = Field(0.0, ge=0)
    """Price of reading 1 GB from a disk."""
    written_gb: float = Field(0.0, ge=0)
    """Price of writing 1 GB to a disk."""
    training_budget: float | None = Field(None, gt=0)
    """Most that one training may cost, choosing among its candidates included; null: any amount."""
    month_budget: float | None = Field(None, gt=0)
    """Most that all stages of a calendar month (UTC) may cost. It stops trainings alone; null: any amount."""

    @model_validator(mode="after")
    def _budgets_have_prices(self) -> CostConfig:
        if (self.training_budget or self.month_budget) and not self.priced:
            raise ValueError("a budget wants a price, such as cpu_hour: without one nothing is ever spent")
        return self

    @property
    def priced(self) -> bool:
        """Whether anything has a price."""
        return any((self.cpu_hour, self.memory_gb_hour, self.read_gb, self.written_gb))

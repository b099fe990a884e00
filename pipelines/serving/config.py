"""Settings of the policy server: the `[serve]` table of offline_dqn.toml."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from datasets.settings import Settings, place_of_file


class ServeConfig(Settings):
    """How decisions are served, and how they are logged."""

    host: str = "127.0.0.1"
    """Address that it listens on. One that other machines reach wants tokens (docs/serving.md)."""
    port: int = Field(8080, ge=0, le=65535)
    """Port that it listens on; 0 takes a free one, which is printed."""
    clock: Literal["server", "request"] = "server"
    """Whose time a decision has. `server`: the server's, which never goes back. `request`: that of the request's
    `timestamp`, for simulations and back-fills."""
    deadline_ms: float = Field(50.0, gt=0, le=60_000)
    """Milliseconds from the arrival of a request to the end of scoring; what misses it is decided by version 0."""
    max_body_kb: int = Field(1024, gt=0, le=1_000_000)
    """Size of a request's body in kB beyond which it is refused."""
    max_batch: int = Field(1000, gt=0)
    """Decisions or outcomes of a request beyond which it is refused."""
    max_waiting: int = Field(1000, gt=0)
    """Connections at once beyond which new requests are told to come back."""
    request_timeout_s: float = Field(10.0, gt=0)
    """Seconds in which a request's head must have arrived, and again its body."""
    shutdown_s: float = Field(10.0, gt=0)
    """Seconds that requests under way have to end when the server is told to stop."""
    tls_certificate: str | None = None
    """Path of a PEM file with the certificate and its chain, relative to the workspace; with it HTTPS is served."""
    tls_key: str | None = None
    """Path of the certificate's private key, a PEM file without a password, relative to the workspace."""
    seed: int | None = Field(None, ge=0)
    """Of the draws, so that a simulation can be repeated; by default they come from the system."""
    durability: Literal["process", "disk"] = "process"
    """What an answered decision survives. `process`: a kill of the server, because its line is with the system before
    the answer; a crash of the machine may cost the last `sync_every_s`. `disk`: also that, because the line is on the
    disk before the answer; decisions that come together share one flush."""
    on_full: Literal["refuse", "baseline"] = "refuse"
    """What a decision gets whose line cannot be written, for example because the disk is full. `refuse`: an error, and
    nothing is decided. `baseline`: version 0 acts and the decision is in no log; its episode counts as damaged."""
    sync_every_s: float = Field(1.0, gt=0, le=60)
    """Seconds between two flushes to the disk; with `disk` the answers wait for flushes of their own."""
    rotate_mb: int = Field(256, gt=0, le=2000)
    """Size in MB from which a log file is followed by the next one; each UTC day begins one too."""
    max_open_decisions: int = Field(500_000, gt=0)
    """Decisions that are remembered until nothing of their outcomes can count any more, the newest; about 300 bytes
    each. With fewer than there are, outcomes of forgotten ones are written unverified."""
    unknown_outcomes: Literal["refuse", "write"] = "refuse"
    """What becomes of an outcome whose decision this server did not make. `write` where others log decisions too."""
    ask_every_s: float = Field(5.0, gt=0, le=3600)
    """Seconds between two questions to the bucket where releases lie ([store] releases): a promotion on another machine
    acts here that much later at most. Where they lie in the workspace nothing is asked, and it acts within a second."""
    min_free_mb: int = Field(64, ge=0)
    """Free MB on the log's disk below which it counts as full, so that there is room left to put things right."""

    @field_validator("tls_certificate", "tls_key")
    @classmethod
    def _is_place(cls, path: str | None) -> str | None:
        return None if path is None else place_of_file(path)

    @model_validator(mode="after")
    def _whole_tls(self) -> ServeConfig:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("wants tls_certificate and tls_key together, or neither")
        return self

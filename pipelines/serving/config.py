"""Settings of the policy server: the `[serve]` table of offline_dqn.toml."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from datasets.settings import Settings


class ServeConfig(Settings):
    """How decisions are served, and how they are logged."""

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
    min_free_mb: int = Field(64, ge=0)
    """Free MB on the log's disk below which it counts as full, so that there is room left to put things right."""

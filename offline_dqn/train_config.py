"""The settings of training, readable without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from datasets.settings import Settings


class TrainConfig(Settings):
    """The `[train]` table."""

    n_updates: int = Field(10_000, gt=0)
    """Gradient updates."""
    batch_size: int = Field(256, gt=0)
    """Steps per update, drawn with replacement."""
    learning_rate: float = Field(3e-4, gt=0)
    """Of Adam."""
    hidden: tuple[int, ...] = (256, 256)
    """Units of each hidden layer."""
    dueling: bool = False
    """Split the head into a state value and advantages."""
    td_loss: Literal["mse", "huber"] = "mse"
    """`mse` estimates the mean, `huber` withstands outliers and undervalues what is rare."""
    penalty_weight: float = Field(1.0, ge=0)
    """Of the conservative penalty, against a TD loss in units of the reward scale. 0 trusts the log everywhere."""
    reward_scale: float | None = Field(None, gt=0)
    """What rewards are divided by; without it their standard deviation."""
    target_sync_every: int = Field(200, gt=0)
    """Updates between copies of the online network into the target network."""
    max_gradient_norm: float = Field(10.0, gt=0)
    """A longer gradient is shortened to this."""
    exploration: float = Field(0.05, ge=0, le=1)
    """Share of the served policy's decisions that are uniform over the available actions. Without it the next log is
    deterministic, and nothing learned from it could be evaluated."""
    seed: int = Field(0, ge=0)
    """Of the initial weights and the batches. Same seed, data, machine and threads: same weights, bit for bit."""
    device: str = "auto"
    """`auto` takes a GPU if there is one; else a torch device name."""
    n_threads: int | None = Field(1, gt=0)
    """Of torch on the CPU while training. One: networks this small gain little from more, and lose a lot where other
    work keeps the machine busy. None leaves it as the process has it."""
    checkpoint_every: int = Field(1_000, gt=0)
    """Updates between checkpoints."""
    log_every: int = Field(500, gt=0)
    """Updates between metrics."""

"""The settings of training, readable without torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from datasets.settings import Settings

Share = Annotated[float, Field(gt=0, le=1)]


class TrainConfig(Settings):
    """The `[train]` table.

    Each of `penalty_weights`, `target_gaps` and `bcq_thresholds` is a learner with networks of its own; all of them,
    and behavior cloning, are trained at once as one batched computation on the same batches.
    """

    n_updates: int = Field(10_000, gt=0)
    """Gradient updates."""
    batch_size: int = Field(256, gt=0)
    """Steps per update, drawn with replacement (without, where they are streamed)."""
    learning_rate: float = Field(3e-4, gt=0)
    """Of Adam."""
    hidden: tuple[Annotated[int, Field(gt=0)], ...] = (256, 256)
    """Units of each hidden layer."""
    dueling: bool = False
    """Split the head into a state value and advantages (Wang et al. 2016)."""
    td_loss: Literal["mse", "huber"] = "mse"
    """`mse` estimates the mean, `huber` withstands outliers and undervalues what is rare. Not used with quantiles."""

    penalty_weights: tuple[Annotated[float, Field(ge=0)], ...] = (0.0, 1.0, 4.0)
    """A Q-learner for each: weight of the conservative penalty against a TD loss in units of the reward scale. 0 trusts
    the log everywhere (Double DQN), more stays nearer to what was logged."""
    target_gaps: tuple[Annotated[float, Field(ge=0)], ...] = ()
    """A Q-learner for each, whose penalty weight is a Lagrange multiplier: it moves until the penalty is this large."""
    gap_learning_rate: float = Field(1e-3, gt=0)
    """Of the logarithm of that multiplier, per update and unit of gap."""
    bcq_thresholds: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.3,)
    """A discrete BCQ learner for each: only actions that the cloned logger takes more often than this, relative to its
    favourite, count in targets and are taken."""
    clone: bool = True
    """Whether behavior cloning is trained beside them. BCQ and support thresholds need it."""
    n_members: int = Field(1, gt=0)
    """Networks of each Q-learner, differing in their initial weights: their mean acts, their spread is kept."""
    candidates_at: tuple[Share, ...] = (0.5, 1.0)
    """Shares of `n_updates` after which the networks are kept as candidates: the last are often not the best."""

    n_step: int = Field(1, gt=0)
    """Rewards summed before a target bootstraps; never across an episode's end (Sutton 1988). More is faster where
    rewards are late, and biased towards what the log did."""
    n_quantiles: int = Field(1, gt=0)
    """Quantiles of the return that each action's value is made of (QR-DQN); 1 learns the mean alone."""
    cvar_share: float = Field(1.0, gt=0, le=1)
    """Actions are chosen by the mean of the lowest quantiles of this share; 1 is the mean of all."""
    priority_exponent: float = Field(0.0, ge=0, le=1)
    """0 draws steps uniformly; more prefers those with large TD errors (prioritized replay)."""
    importance_exponent: float = Field(0.4, ge=0, le=1)
    """How far the bias of preferred steps is corrected at first; it grows to 1 at the last update."""
    older_share: float | None = Field(None, ge=0, lt=1)
    """Share of every batch that comes from nights that the champion's snapshot held, against forgetting; without it, as
    many as they are. Not with priorities."""
    warm_start: bool = False
    """Begin with the champion's weights where its network has the same shape."""
    potential: str | None = None
    """SQL over the struct `observation` whose discounted increase is added to the reward: speeds learning up and leaves
    the optimum unchanged (Ng et al. 1999)."""

    reward_scale: float | None = Field(None, gt=0)
    """What rewards are divided by; without it their standard deviation."""
    target_sync_every: int = Field(200, gt=0)
    """Updates between copies of the online networks into the target networks."""
    polyak: float | None = Field(None, gt=0, le=1)
    """Instead of copies, the share of the online networks that the target networks take at every update."""
    max_gradient_norm: float = Field(10.0, gt=0)
    """A longer gradient of a network is shortened to this."""
    exploration: float = Field(0.05, ge=0, le=1)
    """Share of the served policy's decisions that are uniform over the available actions. Without it the next log is
    deterministic, and nothing learned from it could be evaluated."""
    settled_share: float = Field(0.0, ge=0, lt=1)
    """Training ends early once, three measurements in a row, fewer than this share of the greedy actions changed; 0
    never does."""

    precision: Literal["fp32", "bf16", "auto"] = "auto"
    """Of the matrix products. `auto` is bf16 on a GPU that has it, else fp32."""
    largest_in_memory_mb: int = Field(1_500, gt=0)
    """A training split that would take more than this, raw and encoded, is streamed from the snapshot in shuffled
    blocks, through a pool of a quarter of it."""
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

    @field_validator("penalty_weights", "target_gaps", "bcq_thresholds", "candidates_at", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (int, float)) and not isinstance(value, bool) else value

    @field_validator("penalty_weights", "target_gaps", "bcq_thresholds", "candidates_at")
    @classmethod
    def _without_repeats(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        names = [f"{value:g}" for value in values]  # as learners are named
        if len(set(names)) < len(names):
            raise ValueError(f"names a value twice: {', '.join(names)}")
        return values

    @model_validator(mode="after")
    def _learners_fit(self) -> TrainConfig:
        if not (self.penalty_weights or self.target_gaps or self.bcq_thresholds or self.clone):
            raise ValueError("names no learner: give penalty_weights, target_gaps, bcq_thresholds or clone = true")
        if self.bcq_thresholds and not self.clone:
            raise ValueError("bcq_thresholds need clone = true: the cloned logger says which actions have support")
        if not self.candidates_at:
            raise ValueError("candidates_at is empty: no network would be kept")
        if self.priority_exponent and not (self.penalty_weights or self.target_gaps or self.bcq_thresholds):
            raise ValueError(
                "priority_exponent needs a Q-learner, whose TD errors the priorities are: behavior cloning alone has "
                "none. Set it to 0"
            )
        if self.priority_exponent and self.older_share is not None:
            raise ValueError(
                "older_share and priority_exponent cannot both decide what a batch is made of: leave older_share out, "
                "or set priority_exponent to 0"
            )
        if self.settled_share and not (self.penalty_weights or self.target_gaps or self.bcq_thresholds):
            raise ValueError("settled_share watches the greedy actions of Q-learners, and there is none: set it to 0")
        if self.cvar_share < 1 and self.n_quantiles == 1:
            raise ValueError(f"cvar_share = {self.cvar_share:g} needs n_quantiles > 1: one value has no lowest share")
        return self

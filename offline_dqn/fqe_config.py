"""The settings of fitted Q evaluation, readable without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from datasets.settings import Settings


class FqeConfig(Settings):
    """How the value of a policy is fitted."""

    model: Literal["linear", "network"] = "linear"
    """`linear` in random features is exact and quick, and sees an image coarsely; `network`, on the training loop, sees
    every pixel and takes minutes."""
    network_updates: int = Field(5_000, gt=0)
    """Gradient updates of the network; its target is copied every fiftieth of them, and an episode of more steps than
    that is not carried back to its start."""
    network_hidden: tuple[Annotated[int, Field(gt=0)], ...] = (128, 128)
    """Its units in each hidden layer."""
    n_members: int = Field(3, ge=1)
    """Fits of the linear model in an evaluation, each with random features of its own: values are their mean, and their
    spread is a part of the direct method's interval. With one the interval has no such part."""
    n_random_features: int = Field(400, ge=0)
    """Cosines of random directions of observation and time (Rahimi and Recht 2007): what lets values be curved."""
    max_coefficients: int = Field(2_400, gt=0)
    """Of all actions together. Where observation and time leave less room than `n_random_features`, fewer are drawn (at
    least 50): the time of a fit grows with the cube of the features times the actions."""
    n_time_knots: int = Field(24, ge=0)
    """Bends of the piecewise linear effect of time: half evenly spaced, for values fall fast where logs are cut; half
    at quantiles of the step index, where the steps are."""
    ridges: tuple[Annotated[float, Field(gt=0)], ...] = Field((0.3, 3.0, 30.0, 300.0, 3e3, 3e4, 3e5), min_length=1)
    """Candidates for the strength of shrinkage, in steps' worth of evidence for "like the mean"; held-out clusters
    choose."""
    max_steps: int = Field(60_000, gt=0)
    """Whole episodes are drawn until so many steps are reached; a control variate gains little from more."""
    largest_table: int = Field(2_000, ge=0)
    """Distinct observations up to which `linear` gives way to averages per observation and action; 0 never."""
    smallest_visits: float = Field(3.0, gt=0)
    """Steps, on average, that each observation and action must have for that."""
    most_cut_in_table: float = Field(0.01, ge=0, le=1)
    """Share of episodes that the log may cut for that: a cut comes by the clock, which no table knows."""
    table_shrinkage: float = Field(0.2, gt=0)
    """Steps' worth of evidence that an entry of the table is like the others."""

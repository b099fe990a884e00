"""The settings of choosing a candidate, readable without torch and scipy."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from datasets.settings import Settings

Share = Annotated[float, Field(gt=0, lt=1)]


class SelectConfig(Settings):
    """The `[select]` table: which candidates there are beside the trained networks, and how one of them is chosen."""

    level: float = Field(0.75, gt=0.5, le=0.99)
    """One-sided level of the lower bounds that candidates are ranked by. Bounds of different candidates share most of
    their error, so a high level would prefer what is certain to be little better than the baseline."""
    reuse_weight: float = Field(0.25, gt=0, le=1)
    """What a training episode counts in a model that judges, against 1 of an episode of `select`: candidates were
    fitted to its luck, too."""
    certify_share: float = Field(0.03, ge=0, lt=1)
    """A candidate that the gate can certify is preferred where that costs at most this share of the way from the
    baseline to the best lower bound."""
    tie_share: float = Field(0.03, ge=0, lt=1)
    """Lower bounds that are apart by at most this share of the best estimated difference count as equal, and the best
    estimate decides."""
    n_finalists: int = Field(3, ge=1)
    """Best greedy policies whose softmax, supported and mixed forms are tried, too."""
    temperatures: tuple[Annotated[float, Field(gt=0)], ...] = (0.1, 0.3)
    """Of the softmax forms, in units of the mean distance between an observation's best action and its mean one."""
    support_thresholds: tuple[Share, ...] = (0.1,)
    """Of the supported forms, against the cloned logger's favourite action."""
    mixture_shares: tuple[Share, ...] = (0.5,)
    """Share of decisions of the mixed forms that the candidate makes; the champion or version 0 makes the others."""
    pessimisms: tuple[Annotated[float, Field(ge=0)], ...] = (0.0, 1.0)
    """A plan on the counted model for each, where observations can be counted: standard errors by which a counted mean
    is lowered."""
    largest_counted: int = Field(2_000, ge=0)
    """Distinct observations up to which they are counted; 0 never counts."""
    max_steps: int = Field(60_000, gt=0)
    """Of the episodes that judge where observations are not counted; those of `select` come first."""
    n_replicates: int = Field(2_000, ge=2_000)
    """Bootstrap replicates of the weighted estimates."""

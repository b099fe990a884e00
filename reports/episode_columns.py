"""The table of episodes beside an evaluation: its name and columns, readable without what computes them."""

from __future__ import annotations

import pyarrow as pa

EPISODES = "evaluation_episodes.parquet"
SCHEMA = pa.schema(
    [
        ("release", pa.int64()),
        ("episode_id", pa.string()),
        ("cluster", pa.int64()),
        ("night", pa.date32()),
        ("n_steps", pa.int64()),
        ("return", pa.float64()),
        ("estimator", pa.string()),
        ("candidate_term", pa.float64()),
        ("baseline_term", pa.float64()),
        ("version_zero_term", pa.float64()),
        ("weight", pa.float64()),
    ]
)
"""`return` is discounted; `cluster` is the code of what makes episodes dependent; `weight` what the candidate's overlap
is judged by: its whole-episode importance weight or, where marginalized weights decide, their balance; `estimator` is
the deciding one, null where none decides."""

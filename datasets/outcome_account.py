"""What became of the outcomes of a batch, found without reading what the lake holds of other nights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import PurePath

import numpy as np

from datasets.contract import OutcomeRules
from datasets.duck import duck, literal
from datasets.identities import Identities
from datasets.lake import Lake
from datasets.outcomes import STATUSES, outcomes_status_sql
from datasets.tables import scan_files


@dataclass(frozen=True)
class OutcomeAccount:
    """How many outcomes met which fate, in the words of STATUSES. All of them are kept; only `n_counted` ones settle
    rewards, and dangling ones may yet find their decision."""

    n_counted: int = 0
    n_early: int = 0
    n_late: int = 0
    n_duplicate: int = 0
    n_already_rewarded: int = 0
    n_dangling: int = 0

    def to_json(self) -> dict[str, int]:
        """Plain JSON values."""
        return asdict(self)


def account_of_batch(lake: Lake, batch_id: str, rules: OutcomeRules, *, memory: str = "2GB") -> OutcomeAccount:
    """The account of a batch of outcomes as the lake stands now. The caller holds the lake's lock.

    The index of identities says on which days the decisions lie, so only those partitions are read; of the outcomes
    only those of the same times, for exact repeats.
    """
    outcomes = lake.scan("outcomes")
    own = f"(SELECT * FROM {outcomes} WHERE batch_id = {literal(batch_id)})"
    with duck(memory=memory) as connection:
        connection.execute(f"CREATE TEMP TABLE own AS SELECT * FROM {own}")
        hashes = connection.execute("SELECT DISTINCT hash(decision_id) AS h FROM own ORDER BY h").fetchnumpy()["h"]
        _, days = Identities(lake).partitions_of([np.asarray(hashes, dtype=np.uint64)])
        folders = {f"log_date={day}" for day in days}
        files = [f for f in lake.files("steps") if PurePath(f).parent.name in folders]
        steps = scan_files(files, by_date=True) if files else f"(SELECT * FROM {lake.scan('steps')} LIMIT 0)"
        ((first, last),) = connection.execute("SELECT min(timestamp), max(timestamp) FROM own").fetchall()
        if first is None:
            return OutcomeAccount()
        times = f"TIMESTAMPTZ {literal(first.isoformat())} AND TIMESTAMPTZ {literal(last.isoformat())}"
        named = "decision_id IN (SELECT decision_id FROM own)"
        same = f"(SELECT * FROM {outcomes} WHERE timestamp BETWEEN {times} AND {named})"
        decided = f"(SELECT * FROM {steps} WHERE {named})"
        found = connection.execute(
            f"SELECT status, count(*) FROM ({outcomes_status_sql(decided, same, rules)}) "
            f"WHERE batch_id = {literal(batch_id)} GROUP BY 1"
        ).fetchall()
    counts = dict(found)
    return OutcomeAccount(**{f"n_{status.replace(' ', '_')}": counts.get(status, 0) for status in STATUSES})

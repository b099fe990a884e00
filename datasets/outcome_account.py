"""What became of the outcomes of a batch, found without reading what the lake holds of other nights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import PurePath

import numpy as np

from datasets.duck import duck, literal
from datasets.identities import Identities
from datasets.lake import Lake
from datasets.outcomes import END_STATUSES, STATUSES, outcomes_status_sql
from datasets.tables import scan_files


@dataclass(frozen=True)
class OutcomeAccount:
    """How many outcomes met which fate. All of them are kept, and dangling ones may yet find their decision.

    The counts in the words of STATUSES add up to all outcomes; only `n_counted` ones settle rewards. Those in the words
    of END_STATUSES add up to the outcomes that tell of an episode's end, of which `n_end_counted` are one.
    """

    n_counted: int = 0
    n_early: int = 0
    n_late: int = 0
    n_duplicate: int = 0
    n_already_rewarded: int = 0
    n_dangling: int = 0
    n_no_reward: int = 0
    n_end_counted: int = 0
    n_end_early: int = 0
    n_end_late: int = 0
    n_end_repeated: int = 0
    n_end_contradicting: int = 0
    n_end_dangling: int = 0

    @property
    def warning(self) -> str | None:
        """What a person should look into, in words."""
        if not self.n_end_contradicting:
            return None
        return (
            f"{self.n_end_contradicting:,} outcomes contradict how their episodes ended; these are damaged and "
            "left out (SELECT * FROM outcomes_status WHERE end_status = 'contradicting')"
        )

    def to_json(self) -> dict[str, int]:
        """Plain JSON values."""
        return asdict(self)


def account_of_batch(lake: Lake, batch_id: str, *, memory: str = "2GB") -> OutcomeAccount:
    """The account of a batch of outcomes as the lake stands now. The caller holds the lake's lock.

    The index of identities says on which days the decisions lie, so only those partitions are read; of the outcomes
    only those of the same times, for exact repeats, and those of about the same, which may tell of the same end.
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
        # Two ends of one decision lie no further apart than an episode may be idle, or one of them does not count.
        apart = timedelta(seconds=lake.contract.episodes.timeout_s)
        since, until = ((first - apart).isoformat(), (last + apart).isoformat())
        times = f"TIMESTAMPTZ {literal(since)} AND TIMESTAMPTZ {literal(until)}"
        named = "decision_id IN (SELECT decision_id FROM own)"
        same = f"(SELECT * FROM {outcomes} WHERE timestamp BETWEEN {times} AND {named})"
        decided = f"(SELECT * FROM {steps} WHERE {named})"
        found = connection.execute(
            f"SELECT status, end_status, count(*) FROM ({outcomes_status_sql(decided, same, lake.contract)}) "
            f"WHERE batch_id = {literal(batch_id)} GROUP BY ALL"
        ).fetchall()
    rewards = {status: sum(n for its, _, n in found if its == status) for status in STATUSES}
    ends = {f"end {status}": sum(n for _, its, n in found if its == status) for status in END_STATUSES}
    return OutcomeAccount(**{f"n_{status.replace(' ', '_')}": n for status, n in {**rewards, **ends}.items()})

"""From the lake to a snapshot: DuckDB sorts the steps, and they pass through in blocks."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datasets.contract import CategoricalFeature, Contract, ImageFeature, VectorFeature
from datasets.coverage import write_coverage
from datasets.duck import duck, literal
from datasets.episodes import episodes_sql, lost_rows_sql, transitions_sql
from datasets.exclusions import Exclusion, not_excluded_sql, read_exclusions
from datasets.lake import Lake
from datasets.observations import MISSING_CODE, Observations
from datasets.outcomes import end_window_sql, window_end_sql
from datasets.replay import SPLIT_NAMES, TRAIN, Replay
from datasets.snapshot import SnapshotError, SnapshotSummary, load_replay
from datasets.snapshot_config import SnapshotConfig
from datasets.snapshot_writer import SnapshotWriter, StepBlock, count_splits, new_snapshot, rows_per_block
from datasets.splits import (
    TOO_NEW,
    GateNights,
    SplitLedger,
    fix_splits,
    gate_nights,
    last_night_over,
    read_ledger,
    split_episodes,
    split_rule,
)

_BLOCKS_PER_RUN = 5
"""Blocks of steps that DuckDB sorts at once."""


class NoEpisodesError(SnapshotError):
    """There is no complete, undamaged episode to freeze."""


def freeze_snapshot(
    lake: Lake,
    config: SnapshotConfig,
    folder: Path,
    *,
    as_of: datetime,
    judge_since: date | None = None,
    whole_nights: bool = False,
) -> tuple[Path, SnapshotSummary]:
    """Freezes the complete, undamaged episodes of the lake that nobody excluded into `folder/<digest>`.

    Memory does not grow with steps.

    Where the same content was frozen before, that snapshot and its summary are returned.

    Args:
        as_of: idleness is judged at this instant, and later steps do not exist yet.
        judge_since: after a change of the world, the first night of the new one: older episodes of `select` and `gate`
            are left out, because the judge must live in the world it judges for.
        whole_nights: logs come in whole nights, so the one of `as_of` is over. Matters where the latest nights judge.

    Raises:
        SnapshotError: the lake holds no complete, undamaged episode, an episode would judge that has trained, or the
            snapshot cannot be written.
    """
    judges = gate_nights(config, last_night_over(lake.contract, as_of, whole_nights=whole_nights))
    with new_snapshot(folder) as staging:
        ledger = SplitLedger(split_rule(config, lake.contract), None)
        before = read_ledger(folder) or ledger
        before.check(ledger, judges, str(folder))
        versions = lake.versions()  # before reading: an ingest that comes in between can only make them too old
        with _reading(lake, config, staging, as_of, None) as reading:
            chosen = reading.choose(config, judges, judge_since)
            chosen.check(as_of, judges)
            writer = SnapshotWriter(staging, lake.contract, chosen.episodes)
            for block in reading.blocks(chosen.episodes):
                writer.append(block)
        replay = writer.finish()
        summary = SnapshotSummary(
            digest="",
            as_of=as_of.isoformat(),
            lake_versions=versions,
            judge_since=judge_since.isoformat() if judge_since else None,
            gate_since=judges.first.isoformat() if judges else None,
            n_steps=replay.n_steps,
            n_episodes=replay.n_episodes,
            split_episodes=count_splits(replay),
            n_unusable_ends=writer.n_unusable_ends,
            n_erased=0,
            redacted_from=None,
            config=config.model_dump(mode="json"),
            **chosen.left_out,
        )
        summary = replace(summary, digest=writer.content_digest(replay, summary.left_out))
        write_coverage(staging, replay, config.coverage, summary.digest)
        trained = replay.nights[replay.split != SPLIT_NAMES.index("gate")] if judges else replay.nights[:0]
        until = trained.max().astype(date) if len(trained) else None
        fix_splits(folder, replace(ledger, trained_until=until), judges)  # a stricter ledger than needed does no harm
        return writer.commit(replay, summary)


def read_episodes(
    lake: Lake, config: SnapshotConfig, *, as_of: datetime, started_after: datetime | None = None
) -> Replay | None:
    """The complete, undamaged episodes in memory as a snapshot would hold them, whatever their night; None without any.

    Args:
        started_after: only episodes that started later.

    Raises:
        SnapshotError: the temporary folder has no room for them.
    """
    try:
        with (
            tempfile.TemporaryDirectory(prefix="offline-dqn-") as folder,
            _reading(lake, config, Path(folder), as_of, started_after) as reading,
        ):
            chosen = reading.choose(config.model_copy(update={"gate": "hash"}), None, None)
            if not len(chosen.episodes):
                return None
            writer = SnapshotWriter(Path(folder), lake.contract, chosen.episodes)
            for block in reading.blocks(chosen.episodes):
                writer.append(block)
            vocabularies = writer.finish().observations.vocabularies
            return load_replay(Path(folder), lake.contract, vocabularies, "", mapped=False)
    except (OSError, duckdb.OutOfMemoryException, duckdb.IOException) as error:
        raise SnapshotError(
            f"The episodes could not be read by way of {tempfile.gettempdir()}: {error}. See to it that there is room "
            "(TMPDIR names another place), then run the same command again."
        ) from error


@dataclass(frozen=True)
class _Chosen:
    """The episodes to be frozen, in order, as `SnapshotWriter` takes them, and counts of what is left out."""

    episodes: pa.Table
    left_out: Mapping[str, Any]

    def check(self, as_of: datetime, judges: GateNights | None) -> None:
        left = self.left_out
        if not len(self.episodes):
            raise NoEpisodesError(
                f"There is no episode to freeze: {left['n_open']} are still open at {as_of:%Y-%m-%d %H:%M} UTC, "
                f"{left['n_damaged']} are damaged, {left['n_before_change']} are older than the change of the world, "
                f'{left["n_too_new"]} too new to judge, {left["n_excluded"]} excluded. `offline-dqn query "SELECT '
                'complete, damage, excluded, count(*) FROM episodes GROUP BY ALL"` shows why.'
            )
        if judges is None:
            return
        split = self.episodes["split"].to_numpy()
        n_gate, n_train = int((split == SPLIT_NAMES.index("gate")).sum()), int((split == TRAIN).sum())
        if not n_gate or not n_train:
            raise SnapshotError(
                f"The nights {judges.first} to {judges.last} judge, and they hold {n_gate} episodes, those before "
                f"{n_train} to train on; both are needed. Wait for more nights, or lower snapshot.gate_nights."
            )


@dataclass(frozen=True)
class _Reading:
    """A connection with the table `episodes`, and the relations it was made from."""

    connection: duckdb.DuckDBPyConnection
    contract: Contract
    steps: str
    outcomes: str
    quarantine: str
    started_after: datetime | None
    rules: Sequence[Exclusion]

    def choose(self, config: SnapshotConfig, judges: GateNights | None, judge_since: date | None) -> _Chosen:
        """The episodes with split, cluster code and place; makes the table `chosen` of them."""
        since = f"AND start > TIMESTAMPTZ '{self.started_after.isoformat()}'" if self.started_after else ""
        found = self.connection.sql(
            f"""SELECT episode_id, cluster, coalesce(policy_version, '') AS policy_version, log_date AS night, n_steps,
                start AT TIME ZONE 'UTC' AS started
            FROM episodes WHERE complete AND damage IS NULL AND excluded IS NULL {since}
            ORDER BY start, log_date, episode_id"""
        ).to_arrow_table()
        still_open = self.connection.sql(
            "SELECT DISTINCT log_date FROM episodes WHERE NOT complete AND log_date IS NOT NULL"
        ).to_arrow_table()
        clusters = found["cluster"].combine_chunks().dictionary_encode()
        nights = found["night"].to_numpy().astype("datetime64[D]")
        split = split_episodes(
            clusters.dictionary.to_pylist(),
            clusters.indices.to_numpy(),
            nights,
            still_open["log_date"].to_numpy().astype("datetime64[D]"),
            config.salt or self.contract.name,
            config,
            judges,
        )
        too_new = split == TOO_NEW
        early = ~too_new & (split != TRAIN) & (nights < np.datetime64(judge_since or date.min))
        table = found.append_column("split", pa.array(split)).filter(pa.array(~too_new & ~early))
        # Codes by first appearance: they depend on the kept episodes alone, not on how the lake is laid out.
        codes = table["cluster"].combine_chunks().dictionary_encode().indices.cast(pa.int64())
        table = table.append_column("cluster_code", codes).append_column("start", table["started"])
        table = table.drop_columns(["cluster", "started"])
        return _Chosen(table, {**self._counts(), "n_before_change": int(early.sum()), "n_too_new": int(too_new.sum())})

    def _counts(self) -> dict[str, Any]:
        quarantine = not_excluded_sql(self.quarantine, self.rules)
        counted = self.connection.execute(
            f"""SELECT count(*) FILTER (NOT complete AND excluded IS NULL),
                count(*) FILTER (complete AND damage IS NOT NULL AND excluded IS NULL),
                (SELECT count(*) FILTER (WHERE episode_id IS NULL) + count(DISTINCT episode_id) FILTER (
                    WHERE episode_id NOT IN (SELECT episode_id FROM episodes))
                FROM ({lost_rows_sql(self.steps, self.outcomes, quarantine, self.contract)})) FROM episodes"""
        ).fetchone()
        damage = self.connection.execute(
            """SELECT regexp_replace(unnest(string_split(damage, '; ')), '\\d+', 'some', 'g') AS cause, count(*)
            FROM episodes WHERE complete AND damage IS NOT NULL AND excluded IS NULL GROUP BY 1 ORDER BY 2 DESC, 1"""
        ).fetchall()
        excluded = self.connection.execute(
            """SELECT unnest(string_split(excluded, ', ')) AS name, count(*) FROM episodes
            WHERE excluded IS NOT NULL GROUP BY 1 ORDER BY 1"""
        ).fetchall()
        words = {rule.name: rule.in_words for rule in self.rules}
        every = "SELECT count(*) FROM episodes WHERE excluded IS NOT NULL"
        ((n_excluded,),) = self.connection.execute(every).fetchall()
        return {
            **dict(zip(("n_open", "n_damaged", "n_unplaced"), counted or (), strict=True)),
            "damage": dict(damage),
            "n_excluded": n_excluded,
            "excluded": {words[name]: n for name, n in excluded},
        }

    def blocks(self, episodes: pa.Table) -> Iterator[StepBlock]:
        """The steps of the chosen episodes in the order of the table.

        Read in runs of episodes: those that start one after the other lie in the same few nights, so a run reads few
        of the lake's files, and what sorts it needs no more memory however many runs there are.
        """
        placed = episodes.select(["episode_id"]).append_column("place", pa.array(np.arange(len(episodes))))
        self.connection.register("placed", placed)
        self.connection.execute("CREATE TEMP TABLE chosen AS SELECT * FROM episodes JOIN placed USING (episode_id)")
        self.connection.unregister("placed")
        n_steps = np.cumsum(episodes["n_steps"].to_numpy())
        size = rows_per_block(self.contract)
        run_of_episode = (n_steps - 1) // (_BLOCKS_PER_RUN * size)
        for first, last in _runs(run_of_episode):
            for batch in self.connection.sql(self._run_sql(first, last)).to_arrow_reader(size):
                if len(batch):
                    yield _block(self.contract, batch)

    def _run_sql(self, first: int, last: int) -> str:
        """A SELECT of the steps of the episodes in places `first` to `last`, in order."""
        run = f"(SELECT * FROM chosen WHERE place BETWEEN {first} AND {last})"
        ((since, until),) = self.connection.execute(
            f"""SELECT min(log_date), CASE WHEN count(*) = count("end") THEN max("end")::DATE END FROM {run}"""
        ).fetchall()
        # Written out, not joined: only then does DuckDB leave the files of other nights alone.
        within = " AND ".join(
            [f"log_date >= DATE '{since}'" if since else "true", f"log_date <= DATE '{until}'" if until else "true"]
        )
        steps = f"(SELECT * FROM {self.steps} WHERE {within})"
        outcomes = self.outcomes
        if self.contract.outcomes is not None and since and until:
            day_end = f"TIMESTAMPTZ '{until}' + INTERVAL 1 DAY"
            windows = (window_end_sql(day_end, self.contract.outcomes), end_window_sql(day_end, self.contract))
            latest = f"greatest({', '.join(windows)})"
            outcomes = f"(SELECT * FROM {outcomes} WHERE timestamp BETWEEN TIMESTAMPTZ '{since}' AND {latest})"
        labels = "[" + ", ".join(literal(name) for name in self.contract.actions.names) + "]"
        return f"""
            SELECT observation, list_position({labels}, action) - 1 AS action, reward, ends_terminated, ends_truncated,
                list_transform({labels}, lambda a: available_actions IS NULL OR list_contains(available_actions, a))
                    AS available,
                behavior_prob, position + 1 = t.n_steps AS is_last, final_observation
            FROM ({transitions_sql(steps, outcomes, run, self.contract)}) t
            JOIN (SELECT episode_id, place FROM chosen) USING (episode_id)
            ORDER BY place, position"""


def _runs(run_of_episode: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """First and last place of each run of equal, ascending numbers."""
    ends = np.flatnonzero(np.diff(run_of_episode, append=-1))
    yield from zip([0, *(ends[:-1] + 1).tolist()], ends.tolist(), strict=True)


@contextmanager
def _reading(
    lake: Lake, config: SnapshotConfig, folder: Path, as_of: datetime, started_after: datetime | None
) -> Iterator[_Reading]:
    """Reads the lake as it stands now; what DuckDB's memory does not hold goes into `folder` for a while."""
    # What had not happened at as_of is left out, so that a repeat over a longer lake gives the same episodes.
    until = f"timestamp IS NULL OR timestamp <= TIMESTAMPTZ '{as_of.isoformat()}'"
    tables = lake.scans(("steps", "outcomes", "quarantine"))
    steps = f"(SELECT * FROM {tables['steps']} WHERE {until})"
    outcomes, quarantine = tables["outcomes"], tables["quarantine"]
    rules = read_exclusions(lake)
    episodes = episodes_sql(steps, outcomes, quarantine, lake.contract, as_of, rules)
    spill = folder / ".spill"
    with duck(memory=config.memory, spill=spill) as connection:
        connection.execute(f"CREATE TEMP TABLE episodes AS {episodes}")
        yield _Reading(connection, lake.contract, steps, outcomes, quarantine, started_after, rules)
    shutil.rmtree(spill, ignore_errors=True)


def _block(contract: Contract, batch: pa.RecordBatch) -> StepBlock:
    terminated, truncated, is_last = (
        _booleans(batch[name]) for name in ("ends_terminated", "ends_truncated", "is_last")
    )
    has_final = is_last & truncated & ~terminated & pc.is_valid(batch["final_observation"]).to_numpy(False)
    available = batch["available"].flatten().to_numpy(zero_copy_only=False).astype(np.bool_)
    return StepBlock(
        observations=_observations(contract, batch["observation"]),
        finals=_observations(contract, batch["final_observation"].filter(pa.array(has_final))),
        available=available.reshape(len(batch), len(contract.actions.names)),
        actions=batch["action"].to_numpy(zero_copy_only=False).astype(np.int64),
        rewards=batch["reward"].to_numpy(zero_copy_only=False),
        terminated=terminated,
        truncated=truncated,
        behavior_prob=batch["behavior_prob"].to_numpy(zero_copy_only=False).astype(np.float64),
        is_last=is_last,
        has_final=has_final,
    )


def _observations(contract: Contract, rows: pa.StructArray) -> Observations:
    columns: dict[str, NDArray[Any]] = {}
    vocabularies: dict[str, tuple[str, ...]] = {}
    for name, feature in contract.features.items():
        values = pc.struct_field(rows, name)
        if isinstance(feature, CategoricalFeature):
            encoded = values.dictionary_encode()
            columns[name] = pc.fill_null(encoded.indices, MISSING_CODE).to_numpy(zero_copy_only=False)
            vocabularies[name] = tuple(encoded.dictionary.to_pylist())
        elif isinstance(feature, VectorFeature):
            table = np.full((len(values), feature.length), math.nan)
            present = pc.is_valid(values).to_numpy(zero_copy_only=False)
            table[present] = values.drop_null().flatten().to_numpy().reshape(-1, feature.length)
            columns[name] = table
        elif isinstance(feature, ImageFeature):
            present = pc.is_valid(values).to_numpy(zero_copy_only=False)
            images = np.zeros((len(values), feature.size + 1), dtype=np.uint8)
            images[present, :-1] = values.drop_null().flatten().to_numpy().reshape(-1, feature.size)
            images[:, -1] = ~present
            columns[name] = images
        else:
            columns[name] = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return Observations(columns, vocabularies)


def _booleans(column: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.bool_)

"""Snapshots: the fixed replay dataset, frozen as memory-mappable arrays with a digest of their content."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, model_validator

from datasets.contract import CategoricalFeature, Contract, VectorFeature, contract_from_json
from datasets.duck import duck, literal
from datasets.episodes import episodes_sql, lost_rows_sql, transitions_sql
from datasets.errors import OfflineDqnError
from datasets.lake import Lake
from datasets.observations import MISSING_CODE, Observations
from datasets.replay import GATE, SELECT, SPLIT_NAMES, TRAIN, Replay
from datasets.settings import Settings

FORMAT = 1


class SnapshotError(OfflineDqnError):
    """A snapshot that cannot be made, or whose bytes are not what was frozen."""


class NoEpisodesError(SnapshotError):
    """There is no complete, undamaged episode to freeze."""


class SnapshotConfig(Settings):
    """What is frozen, and how episodes are split."""

    salt: str = ""
    """Mixed into the hash that splits clusters; empty: the contract's name. Never change it in a workspace: an
    episode that trained a policy must not judge the next one."""
    train_share: float = Field(0.5, gt=0, lt=1)
    """Share of clusters that policies and encoders are fitted on."""
    select_share: float = Field(0.1, ge=0, lt=1)
    """Share of clusters on which candidates are compared; the rest is `gate`, which only judges."""

    @model_validator(mode="after")
    def _leaves_a_gate(self) -> SnapshotConfig:
        if self.train_share + self.select_share >= 1:
            raise ValueError("train_share + select_share leave nothing for the gate; their sum must stay below 1")
        return self


@dataclass(frozen=True)
class SnapshotSummary:
    """What a snapshot holds and what was left out of it.

    Attributes:
        digest: SHA-256 of the content: equal data, contract and splits give an equal digest.
        as_of: the instant that decided which episodes were complete.
        lake_versions: Delta version of each table it was read from.
        judge_since: first night of `select` and `gate`, after a change of the world; None: all nights.
        n_steps, n_episodes: what is frozen.
        split_episodes: episodes by split.
        n_open: episodes that had not ended at `as_of`.
        n_damaged: episodes left out whole, and `damage` why, with counts.
        n_unplaced: quarantined rows that name no episode, and episodes of which nothing else came in. Rows of
            a rejected batch count until they are read again.
        n_before_change: episodes of `select` and `gate` left out because they are older than `judge_since`.
        n_unusable_ends: truncated last steps whose next observation is not known.
    """

    digest: str
    as_of: str
    lake_versions: Mapping[str, int]
    judge_since: str | None
    n_steps: int
    n_episodes: int
    split_episodes: Mapping[str, int]
    n_open: int
    n_damaged: int
    damage: Mapping[str, int]
    n_unplaced: int
    n_before_change: int
    n_unusable_ends: int
    config: Mapping[str, Any]

    @property
    def damaged_share(self) -> float:
        """Damaged episodes among those that ended; what cannot be placed counts as one more each."""
        damaged = self.n_damaged + self.n_unplaced
        return damaged / max(1, damaged + self.n_episodes + self.n_before_change)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def split_of(cluster: str, salt: str, config: SnapshotConfig) -> int:
    """TRAIN, SELECT or GATE, from a salted 128-bit hash of the cluster: the same for the life of a workspace."""
    digest = hashlib.sha256(f"{salt}\x00{cluster}".encode()).digest()[:16]
    place = int.from_bytes(digest, "big") / 2**128
    if place < config.train_share:
        return TRAIN
    return SELECT if place < config.train_share + config.select_share else GATE


def freeze_snapshot(
    lake: Lake, config: SnapshotConfig, folder: Path, *, as_of: datetime, judge_since: date | None = None
) -> tuple[Path, SnapshotSummary]:
    """Freezes the complete, undamaged episodes of the lake into `folder/<digest>`.

    Args:
        as_of: idleness is judged at this instant, and later steps do not exist yet.
        judge_since: after a change of the world, the first night of the new one: older episodes of `select` and `gate`
            are left out, because the judge must live in the world it judges for.

    Raises:
        SnapshotError: the lake holds no complete, undamaged episode, or the snapshot cannot be written.
    """
    versions = lake.versions()  # before reading: an ingest that comes in between can only make them too old
    replay, facts = _read(lake, config, as_of, judge_since)
    target = folder / replay.digest[:16]
    summary = SnapshotSummary(
        digest=replay.digest,
        as_of=as_of.isoformat(),
        lake_versions=versions,
        judge_since=judge_since.isoformat() if judge_since else None,
        n_steps=replay.n_steps,
        n_episodes=replay.n_episodes,
        split_episodes={name: int((replay.split == code).sum()) for code, name in enumerate(SPLIT_NAMES)},
        n_unusable_ends=int((replay.truncated & (replay.next_row < 0)).sum()),
        config=config.model_dump(mode="json"),
        **facts,
    )
    if not (target / "snapshot.json").exists():
        try:
            _write(replay, summary, target)
        except OSError as error:
            raise SnapshotError(
                f"{target} could not be written: {error}. There is no new snapshot. See to it that the disk has room, "
                "then run `offline-dqn snapshot` again."
            ) from error
    return target, summary


def read_episodes(
    lake: Lake, config: SnapshotConfig, *, as_of: datetime, started_after: datetime | None = None
) -> Replay | None:
    """The complete, undamaged episodes as a snapshot would hold them, without freezing them; None where there are none.

    Args:
        started_after: only episodes that started later.
    """
    try:
        replay, _ = _read(lake, config, as_of, None, started_after)
    except NoEpisodesError:
        return None
    return replay


def open_snapshot(path: Path) -> tuple[Replay, SnapshotSummary]:
    """The replay dataset in `path`, its arrays memory-mapped, after its bytes were checked.

    Raises:
        SnapshotError: it does not exist, is of another format, or a byte of it has changed.
    """
    try:
        written = json.loads((path / "snapshot.json").read_text())
        found = written["format"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SnapshotError(
            f"{path} holds no readable snapshot ({error}). `offline-dqn snapshot` makes one."
        ) from error
    if found != FORMAT:
        raise SnapshotError(f"{path} is of snapshot format {found}; this version reads format {FORMAT}.")
    if written.get("seal") != _seal(written):
        raise _changed(path / "snapshot.json")
    for name, digest in written["files"].items():
        if not (path / name).exists() or _file_digest(path / name) != digest:
            raise _changed(path / name)
    contract = contract_from_json(written["contract"], str(path / "snapshot.json"))
    episodes = pq.read_table(path / "episodes.parquet")
    columns = {name: _load(path, f"observation.{i}") for i, name in enumerate(contract.features)}
    replay = Replay(
        contract=contract,
        digest=written["summary"]["digest"],
        observations=Observations(columns, {k: tuple(v) for k, v in written["vocabularies"].items()}),
        **{name: _load(path, name) for name in _STEP_ARRAYS},
        offsets=_load(path, "offsets"),
        episode_ids=_strings(episodes["episode_id"]),
        clusters=episodes["cluster_code"].to_numpy(),
        nights=episodes["night"].to_numpy().astype("datetime64[D]"),
        policy_versions=_strings(episodes["policy_version"]),
        split=episodes["split"].to_numpy(),
    )
    return replay, SnapshotSummary(**written["summary"])


def _changed(path: Path) -> SnapshotError:
    return SnapshotError(
        f"{path} is not what was frozen (missing or changed). Delete that snapshot and freeze a new one with "
        "`offline-dqn snapshot`."
    )


_STEP_ARRAYS = (
    "available",
    "actions",
    "rewards",
    "terminated",
    "truncated",
    "next_row",
    "behavior_prob",
)


def _read(
    lake: Lake,
    config: SnapshotConfig,
    as_of: datetime,
    judge_since: date | None,
    started_after: datetime | None = None,
) -> tuple[Replay, dict[str, Any]]:
    contract = lake.contract
    # What had not happened at as_of is left out, so that a repeat over a longer lake gives the same episodes.
    until = f"timestamp IS NULL OR timestamp <= TIMESTAMPTZ '{as_of.isoformat()}'"
    steps = f"(SELECT * FROM {lake.scan('steps')} WHERE {until})"
    quarantine = lake.scan("quarantine")
    with duck() as connection:
        connection.execute(f"CREATE TEMP TABLE episodes AS {episodes_sql(steps, quarantine, contract, as_of)}")
        counted = connection.execute(
            f"""SELECT count(*) FILTER (NOT complete), count(*) FILTER (complete AND damage IS NOT NULL),
                (SELECT count(*) FILTER (WHERE episode_id IS NULL) + count(DISTINCT episode_id) FILTER (
                    WHERE episode_id NOT IN (SELECT episode_id FROM episodes))
                FROM ({lost_rows_sql(steps, quarantine)})) FROM episodes"""
        ).fetchone()
        n_open, n_damaged, n_unplaced = counted or (0, 0, 0)
        damage = connection.execute(
            """SELECT regexp_replace(unnest(string_split(damage, '; ')), '\\d+', 'some', 'g') AS cause, count(*)
            FROM episodes WHERE complete AND damage IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"""
        ).fetchall()
        kept, n_before_change = _kept_episodes(
            _whole_episodes(connection, started_after), contract, config, judge_since
        )
        connection.register("kept", kept)
        table = connection.sql(_steps_sql(steps, contract)).to_arrow_table()
        connection.unregister("kept")
    if not len(table):
        raise NoEpisodesError(
            f"There is no episode to freeze: {n_open} are still open at {as_of:%Y-%m-%d %H:%M} UTC, {n_damaged} are "
            f'damaged, {n_before_change} are older than the change of the world. `offline-dqn query "SELECT complete, '
            'damage, count(*) FROM episodes GROUP BY ALL"` shows why.'
        )
    facts = {
        "n_open": n_open,
        "n_damaged": n_damaged,
        "n_unplaced": n_unplaced,
        "damage": dict(damage),
        "n_before_change": n_before_change,
    }
    return _as_replay(contract, kept, table, facts), facts


def _whole_episodes(connection: duckdb.DuckDBPyConnection, started_after: datetime | None) -> pa.Table:
    since = f"AND start > TIMESTAMPTZ '{started_after.isoformat()}'" if started_after else ""
    return connection.sql(
        f"""SELECT episode_id, cluster, coalesce(policy_version, '') AS policy_version, log_date AS night, n_steps
        FROM episodes WHERE complete AND damage IS NULL {since} ORDER BY start, log_date, episode_id"""
    ).to_arrow_table()


def _kept_episodes(
    episodes: pa.Table, contract: Contract, config: SnapshotConfig, judge_since: date | None
) -> tuple[pa.Table, int]:
    """The episodes with split, cluster code and place, and how many older than the change were left out."""
    salt = config.salt or contract.name
    clusters = episodes["cluster"].combine_chunks().dictionary_encode()
    by_code = np.array([split_of(str(c), salt, config) for c in clusters.dictionary.to_pylist()], dtype=np.int8)
    split = by_code[clusters.indices.to_numpy()] if len(by_code) else np.zeros(0, dtype=np.int8)
    nights = episodes["night"].to_numpy().astype("datetime64[D]")
    early = (split != TRAIN) & (nights < np.datetime64(judge_since or date.min))
    table = episodes.append_column("split", pa.array(split)).filter(pa.array(~early))
    # Codes by first appearance: they depend on the kept episodes alone, not on how the lake is laid out.
    codes = table["cluster"].combine_chunks().dictionary_encode().indices.cast(pa.int64())
    table = table.append_column("cluster_code", codes)
    return table.append_column("place", pa.array(np.arange(len(table)))), int(early.sum())


def _steps_sql(steps: str, contract: Contract) -> str:
    labels = "[" + ", ".join(literal(name) for name in contract.actions.names) + "]"
    return f"""
SELECT t.* EXCLUDE (available_actions), list_position({labels}, action) - 1 AS action_code,
    list_transform({labels}, lambda a: available_actions IS NULL OR list_contains(available_actions, a)) AS mask
FROM ({transitions_sql(steps, "episodes", contract)}) t JOIN kept USING (episode_id)
ORDER BY kept.place, position"""


def _as_replay(contract: Contract, episodes: pa.Table, table: pa.Table, facts: Mapping[str, Any]) -> Replay:
    n_steps = len(table)
    offsets = np.concatenate([[0], np.cumsum(episodes["n_steps"].to_numpy())]).astype(np.int64)
    is_last = np.zeros(n_steps, dtype=bool)
    is_last[offsets[1:] - 1] = True
    terminated = _booleans(table["ends_terminated"])
    truncated = _booleans(table["ends_truncated"])
    has_final = is_last & truncated & ~terminated & pc.is_valid(table["final_observation"]).to_numpy()
    next_row = np.arange(1, n_steps + 1, dtype=np.int64)
    next_row[is_last] = -1
    next_row[has_final] = n_steps + np.arange(int(has_final.sum()))
    observation = table["observation"].combine_chunks()
    finals = table["final_observation"].combine_chunks().filter(pa.array(has_final))
    mask = table["mask"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(bool)
    n_actions = len(contract.actions.names)
    replay = Replay(
        contract=contract,
        digest="",
        observations=_observations(contract, observation, finals),
        available=np.concatenate([mask.reshape(n_steps, n_actions), np.ones((len(finals), n_actions), dtype=bool)]),
        actions=table["action_code"].to_numpy().astype(np.int64),
        rewards=table["reward"].to_numpy(),
        terminated=terminated,
        truncated=truncated,
        next_row=next_row,
        behavior_prob=np.array(table["behavior_prob"].to_numpy(), dtype=np.float64),
        offsets=offsets,
        episode_ids=_strings(episodes["episode_id"]),
        clusters=episodes["cluster_code"].to_numpy(),
        nights=episodes["night"].to_numpy().astype("datetime64[D]"),
        policy_versions=_strings(episodes["policy_version"]),
        split=episodes["split"].to_numpy(),
    )
    return Replay(**{**_fields(replay), "digest": _content_digest(replay, facts)})


def _fields(replay: Replay) -> dict[str, Any]:
    return {name: getattr(replay, name) for name in Replay.__dataclass_fields__}


def _observations(contract: Contract, steps: pa.StructArray, finals: pa.StructArray) -> Observations:
    columns: dict[str, NDArray[Any]] = {}
    vocabularies: dict[str, tuple[str, ...]] = {}
    for name, feature in contract.features.items():
        values = pa.concat_arrays([pc.struct_field(part, name) for part in (steps, finals)])
        if isinstance(feature, CategoricalFeature):
            encoded = values.dictionary_encode()
            labels = encoded.dictionary.to_pylist()
            order = np.argsort(np.array(labels, dtype=object)) if labels else np.zeros(0, dtype=np.int64)
            rank = np.empty(len(labels) + 1, dtype=np.int32)
            rank[order] = np.arange(len(labels))
            rank[-1] = MISSING_CODE
            columns[name] = rank[pc.fill_null(encoded.indices, -1).to_numpy()]
            vocabularies[name] = tuple(labels[i] for i in order)
        elif isinstance(feature, VectorFeature):
            table = np.full((len(values), feature.length), math.nan)
            present = pc.is_valid(values).to_numpy(zero_copy_only=False)
            table[present] = values.drop_null().flatten().to_numpy().reshape(-1, feature.length)
            columns[name] = table
        else:
            columns[name] = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return Observations(columns, vocabularies)


def _booleans(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    return np.asarray(column.to_numpy(), dtype=np.bool_)


def _strings(column: pa.ChunkedArray) -> NDArray[Any]:
    return np.array(column.to_pylist(), dtype=object)


def _content_digest(replay: Replay, facts: Mapping[str, Any]) -> str:
    """SHA-256 over contract and arrays: a function of what is in them, not of files or dates of making."""
    digest = hashlib.sha256(f"{FORMAT}\x00{replay.contract.digest}".encode())
    for name, values in sorted(_arrays(replay).items()):
        digest.update(f"\x00{name}\x00{values.dtype.str}\x00{values.shape}\x00".encode())
        digest.update(np.ascontiguousarray(values).data)
    for labels in (
        replay.episode_ids,
        replay.policy_versions,
        *map(np.array, replay.observations.vocabularies.values()),
    ):
        digest.update(json.dumps(labels.tolist()).encode())
    digest.update(np.ascontiguousarray(replay.nights.astype(np.int64)).data)
    # What was left out is part of it: the gate charges for damage, so two snapshots that differ in it are not one.
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()


def _arrays(replay: Replay) -> dict[str, NDArray[Any]]:
    observations = {f"observation.{i}": v for i, v in enumerate(replay.observations.columns.values())}
    episode_arrays = {"split": replay.split, "clusters": replay.clusters}
    return {name: getattr(replay, name) for name in (*_STEP_ARRAYS, "offsets")} | observations | episode_arrays


def _write(replay: Replay, summary: SnapshotSummary, target: Path) -> None:
    beside = target.with_name(f".{target.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for name, values in _arrays(replay).items():
        if name not in {"split", "clusters"}:  # they stand in episodes.parquet
            np.save(beside / f"{name}.npy", values)
    episodes = pa.table(
        {
            "episode_id": pa.array(replay.episode_ids, pa.string()),
            "cluster_code": replay.clusters,
            "night": pa.array(replay.nights),
            "policy_version": pa.array(replay.policy_versions, pa.string()),
            "split": replay.split,
        }
    )
    pq.write_table(episodes, beside / "episodes.parquet", compression="zstd")
    written = {
        "format": FORMAT,
        "summary": summary.to_json(),
        "contract": replay.contract.to_json(),
        "vocabularies": {name: list(labels) for name, labels in replay.observations.vocabularies.items()},
        "files": {path.name: _file_digest(path) for path in sorted(beside.iterdir())},
    }
    (beside / "snapshot.json").write_text(json.dumps({**written, "seal": _seal(written)}, indent=1))
    shutil.rmtree(target, ignore_errors=True)
    beside.replace(target)


def _seal(written: Mapping[str, Any]) -> str:
    """SHA-256 of everything else in a snapshot's `snapshot.json`."""
    text = json.dumps({key: value for key, value in written.items() if key != "seal"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _load(path: Path, name: str) -> NDArray[Any]:
    values: NDArray[Any] = np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return values


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

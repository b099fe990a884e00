"""Exclusions: rows of the lake that a person takes out of training, evaluation and drift, and that stay where they are.

A source may turn out to be poisoned, a collector broken, an experiment no part of ordinary life. What is excluded is a
rule, not a set of rows: rows that the same source brings later are excluded too. An episode of which any row is meant
is left out whole, like a damaged one, since its rest would be a biased part; but it is not charged as damage, because
somebody answers for it by name. Every rule and every lifting of one is a row of the lake's table `exclusions`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from datasets.contract import Contract
from datasets.duck import duck, literal
from datasets.errors import OfflineDqnError
from datasets.expressions import expression_problem, unsteady_functions
from datasets.lake import Lake, changing, lake_lock, until_committed
from datasets.parts import stage_records
from datasets.tables import table_columns

EXCLUDE, LIFT = "exclude", "lift"
"""Actions in the table."""

_TABLES = ("steps", "outcomes", "quarantine")


class ExclusionError(OfflineDqnError):
    """A rule that cannot be meant so, or that is not there."""


@dataclass(frozen=True)
class Meant:
    """Which rows a rule means: those for which everything holds that is given.

    Attributes:
        source: path of a log file as the column `source` has it, or a pattern of such (`*`, `?`, `[...]`).
        batch: id of a batch.
        where: SQL condition over the columns of `steps`; it means no row of another table.
    """

    source: str = ""
    batch: str = ""
    where: str = ""

    @property
    def in_words(self) -> str:
        """Such as "source logs/steps/b*.jsonl where reward > 0"."""
        parts = {"source": self.source, "batch": self.batch, "where": self.where}
        return " ".join(f"{name} {value}" for name, value in parts.items() if value)

    def sql(self, table: str) -> str | None:
        """The condition on rows of a table; None where it means none of them."""
        if self.where and table != "steps":
            return None
        named = literal(self.source)
        parts = [
            f"(source = {named} OR source GLOB {named})" if self.source else "",
            f"batch_id = {literal(self.batch)}" if self.batch else "",
            f"({self.where}\n)" if self.where else "",
        ]
        return f"({' AND '.join(filter(None, parts))}) IS TRUE"


@dataclass(frozen=True)
class Exclusion:
    """A rule that stands.

    Attributes:
        name: "x1", "x2", ... in the order in which they were made.
        by, note, at: who answers for it, why, and since when.
        n_rows: rows that it meant when it was made.
    """

    name: str
    meant: Meant
    by: str
    note: str
    at: datetime
    n_rows: int

    @property
    def in_words(self) -> str:
        """What, by whom and why."""
        return f"{self.name}: {self.meant.in_words} (by {self.by}, {self.note})"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {"name": self.name, **asdict(self.meant), "by": self.by, "note": self.note}
        return {**values, "at": self.at.isoformat(), "n_rows": self.n_rows}


def excluded_episodes_sql(steps: str, outcomes: str, quarantine: str, rules: Sequence[Exclusion]) -> str:
    """A SELECT with one row per excluded episode: `episode_id`, and the names of the rules as `excluded`, such as
    "x1, x3".

    An outcome means the episode of its decision, a quarantined row the one that it names.

    Args:
        steps, outcomes, quarantine: SQL relations of those tables, as logged.
        rules: one at least.
    """
    parts = []
    for rule in rules:
        name, meant = literal(rule.name), {table: rule.meant.sql(table) for table in _TABLES}
        parts.append(f"SELECT episode_id, {name} AS name FROM {steps} WHERE {meant['steps']}")
        if meant["outcomes"] is not None:
            parts.append(
                f"""SELECT episode_id, {name} AS name FROM {steps}
                SEMI JOIN (SELECT decision_id FROM {outcomes} WHERE {meant["outcomes"]}) USING (decision_id)"""
            )
        if meant["quarantine"] is not None:
            parts.append(
                f"""SELECT episode_id, {name} AS name FROM {quarantine}
                WHERE {meant["quarantine"]} AND episode_id IS NOT NULL"""
            )
    rows = " UNION ALL ".join(f"({part})" for part in parts)
    return (
        f"SELECT episode_id, string_agg(DISTINCT name, ', ' ORDER BY name) AS excluded FROM ({rows}) "
        "WHERE episode_id IS NOT NULL GROUP BY episode_id"
    )


def not_excluded_sql(quarantine: str, rules: Sequence[Exclusion]) -> str:
    """SQL relation of the quarantined rows that no rule means."""
    meant = [sql for rule in rules if (sql := rule.meant.sql("quarantine")) is not None]
    return f"(SELECT * FROM {quarantine} WHERE NOT ({' OR '.join(meant)}))" if meant else quarantine


def read_exclusions(lake: Lake) -> list[Exclusion]:
    """The rules that stand, in the order in which they were made."""
    lifted = {row["exclusion_id"] for row in exclusion_history(lake) if row["action"] == LIFT}
    return [
        _rule(row) for row in exclusion_history(lake) if row["action"] == EXCLUDE and row["exclusion_id"] not in lifted
    ]


def exclusion_history(lake: Lake) -> list[dict[str, Any]]:
    """Every rule and every lifting, as the table has them, oldest first."""
    with duck() as connection:
        found = connection.execute(f"SELECT * FROM {lake.scan('exclusions')} ORDER BY commit_number")
        names = [column[0] for column in found.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def exclude(
    lake: Lake, meant: Meant, *, by: str, note: str, at: datetime, coming: bool = False, dry_run: bool = False
) -> tuple[Exclusion, bool]:
    """Adds a rule, unless the same one stands.

    Args:
        coming: also where no row of the lake is meant yet.
        dry_run: change nothing.

    Returns:
        The rule that stands for it, or would, and whether it is new.

    Raises:
        ExclusionError: it says nothing, its condition cannot be used, it means no row, or nobody or nothing answers
            for it.
        LakeError: the disk is full.
    """
    _check(lake.contract, meant, by, note)
    return until_committed(lambda: _exclude_once(lake, meant, by=by, note=note, at=at, coming=coming, dry_run=dry_run))


def _exclude_once(
    lake: Lake, meant: Meant, *, by: str, note: str, at: datetime, coming: bool, dry_run: bool
) -> tuple[Exclusion, bool]:
    with lake_lock(lake), changing(lake, "the exclusion"):
        lake.finish_commit()
        standing = next((rule for rule in read_exclusions(lake) if rule.meant == meant), None)
        if standing is not None:
            return standing, False
        n_rows = sum(count_meant(lake, meant).values())
        if not n_rows and not coming:
            raise ExclusionError(_means_nothing(lake, meant))
        n_made = sum(row["action"] == EXCLUDE for row in exclusion_history(lake))
        rule = Exclusion(f"x{n_made + 1}", meant, by.strip(), note.strip(), at, n_rows)
        if not dry_run:
            _record(lake, rule, EXCLUDE, rule.by, rule.note, at)
    return rule, True


def lift(lake: Lake, name: str, *, by: str, note: str, at: datetime) -> Exclusion:
    """Ends a rule: from now on its rows take part again.

    Raises:
        ExclusionError: no such rule stands, or nobody or nothing answers for it.
        LakeError: the disk is full.
    """
    _check_answerable(by, note)
    return until_committed(lambda: _lift_once(lake, name, by=by, note=note, at=at))


def _lift_once(lake: Lake, name: str, *, by: str, note: str, at: datetime) -> Exclusion:
    with lake_lock(lake), changing(lake, "the lifting"):
        lake.finish_commit()
        standing = {rule.name: rule for rule in read_exclusions(lake)}
        if name not in standing:
            known = ", ".join(standing) or "none"
            raise ExclusionError(f"No exclusion '{name}' stands; those that do: {known}. `offline-dqn exclude list`.")
        _record(lake, standing[name], LIFT, by.strip(), note.strip(), at)
    return standing[name]


def count_meant(lake: Lake, meant: Meant) -> dict[str, int]:
    """How many rows a rule means now, by table."""
    tables, counts = lake.scans(_TABLES), {}
    with duck() as connection:
        for table in _TABLES:
            condition = meant.sql(table)
            found = (
                connection.execute(f"SELECT count(*) FROM {tables[table]} WHERE {condition}").fetchone()
                if condition is not None
                else None
            )
            counts[table] = int(found[0]) if found else 0
    return counts


def _check(contract: Contract, meant: Meant, by: str, note: str) -> None:
    if not (meant.source or meant.batch or meant.where):
        raise ExclusionError("Which rows? Name a source, a batch or a condition: --source, --batch, --where.")
    _check_answerable(by, note)
    if not meant.where:
        return
    columns: Mapping[str, str] = table_columns(contract)["steps"]
    problem = expression_problem(meant.where, "BOOLEAN", columns, contract.actions.names)
    if problem is not None:
        raise ExclusionError(f"The condition cannot be used: {problem}. Nothing was excluded.")
    unsteady = unsteady_functions(meant.where)
    if unsteady:
        raise ExclusionError(
            f"The condition calls {', '.join(unsteady)}, which answers otherwise each time: nobody could train on the "
            "same rows again. Write instants and numbers out. Nothing was excluded."
        )


def _check_answerable(by: str, note: str) -> None:
    if not by.strip():
        raise ExclusionError("Who answers for it? Name somebody: --reviewer NAME.")
    if not note.strip():
        raise ExclusionError("Why? It stands in every report from now on: --note TEXT.")


def _means_nothing(lake: Lake, meant: Meant) -> str:
    with duck() as connection:
        newest = connection.execute(
            f"SELECT source FROM {lake.scan('steps')} GROUP BY 1 ORDER BY max(timestamp) DESC NULLS LAST, 1 LIMIT 5"
        ).fetchall()
    listed = ", ".join(source for (source,) in newest) or "none"
    return (
        f"No row of the lake is meant by {meant.in_words}. Its newest sources: {listed}. For rows that are still to "
        "come, give --coming. Nothing was excluded."
    )


def _record(lake: Lake, rule: Exclusion, action: str, by: str, note: str, at: datetime) -> None:
    record: dict[str, object] = {
        "exclusion_id": rule.name,
        "action": action,
        "source": rule.meant.source or None,
        "batch_id": rule.meant.batch or None,
        "condition": rule.meant.where or None,
        "reviewer": by,
        "note": note,
        "settled_at": at,
        "n_rows": rule.n_rows,
        "commit_number": lake.commit_number() + 1,
    }
    folder = lake.staging_path / f"exclusion-{rule.name}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        lake.commit({"exclusions": stage_records(lake, "exclusions", [record], folder, batch_id=rule.name)})
    finally:
        if not lake.journal_path.exists():  # an unfinished commit still needs its file
            shutil.rmtree(folder, ignore_errors=True)


def _rule(row: Mapping[str, Any]) -> Exclusion:
    meant = Meant(row["source"] or "", row["batch_id"] or "", row["condition"] or "")
    return Exclusion(row["exclusion_id"], meant, row["reviewer"], row["note"], row["settled_at"], row["n_rows"])

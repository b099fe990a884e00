"""What the lake tells of a night: returns, successes, violations, and who decided."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

from datasets.contract import Contract
from datasets.duck import duck, literal
from datasets.episodes import episodes_sql, transitions_sql
from datasets.exclusions import read_exclusions
from datasets.expressions import mentioned_fields
from datasets.lake import Lake
from pipelines.metrics.values import Values
from reports.operating_metrics import METRICS

_MARGIN = timedelta(days=2)
"""Nights before the first that are read too: an episode that began then must not look cut off."""

_WORST, _MOST_TRACED = 3, 60
"""Episodes whose rewards are shown step by step, and steps of each."""

_LAKE_KEYS = tuple(metric.key for metric in METRICS if metric.of == "episodes")
"""Regret among them, which `regret_of_nights` finds where there is an episode."""


def lake_metrics(lake: Lake, nights: Sequence[date], *, as_of: datetime, newest_over: date) -> dict[date, Values]:
    """The metrics of each night's episodes: those that started in it, complete and undamaged.

    Args:
        lake: read at one commit; only the files of these nights and later ones are.
        nights: UTC dates, in any order.
        as_of: when episodes are judged to be complete.
        newest_over: the last night that is over; a later one is not measured.
    """
    over = sorted(night for night in nights if night <= newest_over)
    found = {night: Values() for night in nights}
    for night in nights:
        if night > newest_over:
            _all_missing(found[night], "the night is not over yet")
    if not over:
        return found
    contract = lake.contract
    with tempfile.TemporaryDirectory(prefix="offline-dqn-") as folder, duck(spill=Path(folder)) as connection:
        _read(connection, lake, over[0], over[-1], as_of)
        failed = _judge(connection, contract)
        facts = _facts(connection, contract, failed)
    for night in over:
        _describe(found[night], facts, night, contract, failed)
    return found


def _all_missing(values: Values, reason: str) -> None:
    for key in _LAKE_KEYS:
        values.missing(key, reason)


def _read(connection: duckdb.DuckDBPyConnection, lake: Lake, first: date, last: date, as_of: datetime) -> None:
    """Tables `decisions` and `episodes` of the nights; afterwards nothing but these can be reached."""
    scans = lake.scans()
    connection.execute(
        f"CREATE TEMP VIEW steps_of AS SELECT * FROM {scans['steps']} "
        f"WHERE log_date >= DATE {literal((first - _MARGIN).isoformat())}"
    )
    rules = read_exclusions(lake)
    episodes = episodes_sql("steps_of", scans["outcomes"], scans["quarantine"], lake.contract, as_of, rules)
    between = f"BETWEEN DATE {literal(first.isoformat())} AND DATE {literal(last.isoformat())}"
    connection.execute(f"CREATE TEMP TABLE episodes AS SELECT * FROM ({episodes}) WHERE log_date {between}")
    transitions = transitions_sql("steps_of", scans["outcomes"], "episodes", lake.contract)
    connection.execute(
        f"""CREATE TEMP TABLE decisions AS
        SELECT episode_log_date AS night, episode_id, position, n_steps, action, reward, observation, next_observation,
            coalesce(policy_version, 'unknown') AS policy_version, coalesce(decided_by, 'unknown') AS decided_by
        FROM ({transitions})"""
    )
    connection.execute("SET enable_external_access = false; SET lock_configuration = true")


def _conditions(contract: Contract) -> dict[str, tuple[str, bool]]:
    """By name: the SQL, and whether a decision of which it cannot be told counts as true."""
    success = {"": (contract.success.when, False)} if contract.success is not None else {}
    forbids = {name: (sql, False) for name, sql in contract.forbids.items()}
    return {**success, **forbids, **{name: (sql, True) for name, sql in contract.breaches.items()}}


def _judge(connection: duckdb.DuckDBPyConnection, contract: Contract) -> dict[str, str]:
    """A column `judged_i` for each condition: true, false, or null where its outcome is not there. Conditions that
    fail on a row, and why."""
    failed = {}
    for i, (name, (sql, unanswered)) in enumerate(_conditions(contract).items()):
        asks = mentioned_fields(sql, "next_observation") != frozenset()
        ended = "next_observation IS NULL" if asks else "false"
        connection.execute(f"ALTER TABLE decisions ADD COLUMN judged_{i} BOOLEAN")
        judged = f"CASE WHEN ({sql}\n) IS NULL AND {ended} THEN NULL ELSE coalesce(({sql}\n), {unanswered}) END"
        try:
            connection.execute(f"UPDATE decisions SET judged_{i} = {judged}")
        except duckdb.Error as error:
            what = f"constraint {name}" if name else "[success]"
            failed[name] = f"{what} fails on a row of the night: {str(error).splitlines()[0]}"
    return failed


@dataclass(frozen=True)
class _Facts:
    """Rows of each question, by night."""

    states: Mapping[date, list[Any]]
    returns: Mapping[date, list[Any]]
    decided: Mapping[date, list[Any]]
    success: Mapping[date, list[Any]]
    violations: Mapping[date, list[Any]]
    traces: Mapping[date, list[Any]]


def _facts(connection: duckdb.DuckDBPyConnection, contract: Contract, failed: Mapping[str, str]) -> _Facts:
    def ask(sql: str) -> dict[date, list[Any]]:
        rows: dict[date, list[Any]] = defaultdict(list)
        for night, *row in connection.execute(sql).fetchall():
            rows[night].append(row)
        return rows

    names = list(_conditions(contract))
    columns = {name: f"judged_{names.index(name)}" for name in names if name not in failed}
    broken = {name: column for name, column in columns.items() if name}
    any_broken = " OR ".join(broken.values()) or "NULL"
    any_judged = " OR ".join(f"{column} IS NOT NULL" for column in broken.values()) or "false"
    sums = "".join(f", sum({c}::INTEGER)::DOUBLE, count({c})" for c in broken.values())
    succeeded = columns.get("", "NULL::BOOLEAN")
    return _Facts(
        states=ask(
            """SELECT log_date, CASE WHEN excluded IS NOT NULL THEN 'excluded'
            WHEN damage IS NOT NULL THEN 'damaged' WHEN complete THEN 'complete'
            ELSE 'open' END, count(*) FROM episodes GROUP BY ALL"""
        ),
        returns=ask(
            """SELECT night, version, count(*), avg(earned) FROM (
                SELECT night, episode_id, arg_min(policy_version, position) AS version, sum(reward) AS earned
                FROM decisions GROUP BY ALL
            ) GROUP BY ALL ORDER BY ALL"""
        ),
        decided=ask("SELECT night, policy_version, decided_by, count(*) FROM decisions GROUP BY ALL ORDER BY ALL"),
        success=ask(
            f"SELECT night, policy_version, sum({succeeded}::INTEGER)::DOUBLE, count({succeeded}) FROM decisions "
            "GROUP BY ALL ORDER BY ALL"
        ),
        violations=ask(
            f"SELECT night, count(*) FILTER ({any_broken})::DOUBLE, count(*) FILTER ({any_judged}){sums} "
            "FROM decisions GROUP BY ALL"
        ),
        traces=ask(
            f"""SELECT night, rank, position, action, reward FROM decisions JOIN (
                SELECT night, episode_id,
                    row_number() OVER (PARTITION BY night ORDER BY sum(reward), episode_id) AS rank
                FROM decisions GROUP BY night, episode_id QUALIFY rank <= {_WORST}
            ) USING (night, episode_id) WHERE position < {_MOST_TRACED} ORDER BY night, rank, position"""
        ),
    )


def _describe(values: Values, facts: _Facts, night: date, contract: Contract, failed: Mapping[str, str]) -> None:
    for state, n in facts.states[night]:
        values.add("offline_dqn_episodes", n, state=state)
    returns = facts.returns[night]
    n_episodes = sum(n for _, n, _ in returns)
    if not n_episodes:
        states = ", ".join(f"{n} {state}" for state, n in facts.states[night]) or "none at all"
        _all_missing(values, f"no complete episode started in this night ({states})")
        return
    values.add("offline_dqn_mean_episode_return", sum(n * mean for _, n, mean in returns) / n_episodes)
    for version, _, mean in returns:
        values.add("offline_dqn_version_episode_return", mean, policy_version=version)
    for version, decided_by, n in facts.decided[night]:
        values.add("offline_dqn_night_decisions", n, policy_version=version, decided_by=decided_by)
    for rank, position, action, reward in facts.traces[night]:
        values.add("offline_dqn_worst_episode_reward", reward, rank=rank, step=position, action=action)
    _success(values, facts.success[night], contract, failed)
    _violations(values, facts.violations[night], contract, failed)


def _success(values: Values, rows: Iterable[Any], contract: Contract, failed: Mapping[str, str]) -> None:
    judged = [(version, true, n) for version, true, n in rows if n]
    if contract.success is None:
        values.missing("action_success_rate", "contract.toml has no [success], which says when a decision was one")
    elif "" in failed:
        values.missing("action_success_rate", failed[""])
    elif not judged:
        values.missing("action_success_rate", "no decision of the night has the outcome that [success] asks for")
    else:
        total = sum(n for _, _, n in judged)
        values.add("offline_dqn_action_success_ratio", sum(true for _, true, _ in judged) / total)
        values.add("offline_dqn_action_success_judged_decisions", total)
        for version, true, n in judged:
            values.add("offline_dqn_version_success_ratio", true / n, policy_version=version)


def _violations(values: Values, rows: Sequence[Any], contract: Contract, failed: Mapping[str, str]) -> None:
    constraints = {**contract.forbids, **contract.breaches}
    wrong = [text for name, text in failed.items() if name]
    if not constraints:
        values.missing("safety_violation_rate", "contract.toml has no [constraints]: nothing is forbidden")
        return
    any_broken, n, *by_constraint = rows[0]
    limits = {name: rule.limit or 0.0 for name, rule in contract.constraints.items()}
    for name in constraints:  # what follows from a cap is forbidden, too
        values.add("offline_dqn_constraint_limit_ratio", limits.get(name, 0.0), constraint=name)
    pairs = zip(by_constraint[::2], by_constraint[1::2], strict=True)
    for name, (broken, judged) in zip([name for name in constraints if name not in failed], pairs, strict=True):
        values.add("offline_dqn_constraint_violation_ratio", broken / judged if judged else None, constraint=name)
    if wrong:
        values.missing("safety_violation_rate", "; ".join(wrong))
    elif not n:
        values.missing("safety_violation_rate", "no decision of the night has the outcome that [constraints] ask for")
    else:
        values.add("offline_dqn_safety_violation_ratio", any_broken / n)
        values.add("offline_dqn_safety_violation_judged_decisions", n)

"""Episodes derived from steps: whether each has ended, and whether every row of it can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from datasets.contract import Contract
from datasets.duck import literal
from datasets.exclusions import Exclusion, excluded_episodes_sql
from datasets.identities import identity_sql
from datasets.outcomes import combined_outcomes_sql, ends_sql, step_end_sql, window_end_sql

REJECTED = "rejected by "
"""How the reason of a quarantined row begins whose whole batch a person rejected."""


def episodes_sql(
    steps: str,
    outcomes: str,
    quarantine: str,
    contract: Contract,
    as_of: datetime,
    rules: Sequence[Exclusion] = (),
) -> str:
    """A SELECT with one row per episode, as seen at `as_of`.

    An episode has ended when its last step is terminated or truncated, by its own flags or by an outcome of its
    decision, or when it has been idle for longer than the contract's timeout. It is complete when it has ended and no
    step of it still awaits outcomes. It is damaged, with the cause in words, when a row of it is in quarantine, when a
    step is missing or repeated, when its order cannot be told, when its clock jumps, when it goes on after its end, or
    when that is contradicted: such an episode takes no part in training or evaluation, because what is missing may well
    be its worst part. Everything is derived anew from the rows: an episode that idleness had completed is open again,
    and longer, once more of its steps have come in.

    Cost is linear in the steps: hash aggregates only, which spill where memory does not suffice.

    Args:
        steps, outcomes, quarantine: SQL relations of those tables, as logged.
        rules: what a person has taken out; such an episode is named as excluded, whatever else is true of it.

    Returns:
        Columns episode_id, cluster, policy_version (of the first step), n_steps, n_awaited (steps whose outcomes may
        still come), n_defaulted (steps whose window closed without any), return (sum of rewards, not discounted; null
        while any is awaited), start, end, log_date (of the start), terminated, truncated (at the last step, not by
        idleness), complete, damage (null where there is none), excluded (names of the rules, or null), as_of.
    """
    now = f"TIMESTAMPTZ {literal(as_of.isoformat())}"
    idle = f'"end" <= {now} - INTERVAL {contract.episodes.timeout_s} SECONDS'
    one_step = contract.episodes.kind == "one_step"
    ended = "true" if one_step else f"coalesce(terminated OR truncated OR {idle}, false)"
    apart = f"INTERVAL {round(contract.episodes.clock_tolerance_s * 1e6)} MICROSECONDS"
    left_out = ""
    if rules:
        left_out = f" LEFT JOIN ({excluded_episodes_sql(steps, outcomes, quarantine, rules)}) USING (episode_id)"
    return f"""
WITH lost AS ({lost_rows_sql(steps, outcomes, quarantine, contract)}),
quarantined AS (SELECT episode_id, count(*) AS n FROM lost WHERE episode_id IS NOT NULL GROUP BY 1),
counted AS (
    SELECT episode_id,
        min(cluster) AS cluster,
        max(cluster) AS other_cluster,
        arg_min_null(policy_version, place) AS policy_version,
        count(*) AS n_steps,
        count(*) FILTER (is_awaited) AS n_awaited,
        count(*) FILTER (is_defaulted) AS n_defaulted,
        count(*) FILTER (is_out_of_range) AS n_out_of_range,
        count(*) FILTER (contradicts_end) AS n_contradicted,
        sum(reward) AS "return",
        min(timestamp) AS start,
        max(timestamp) AS "end",
        arg_min(timestamp, place) AS first_at,
        arg_max(timestamp, place) AS last_at,
        min(log_date) AS log_date,
        arg_max(terminated, place) AS terminated,
        arg_max(truncated, place) AS truncated,
        count(*) FILTER (terminated OR truncated) AS n_ends,
        count(DISTINCT place) AS n_places,
        count(step) AS n_numbered,
        min(step) AS min_step,
        max(step) AS max_step
    FROM ({_placed_steps_sql(steps, outcomes, contract, now)}) GROUP BY episode_id
),
-- Logs count from 0 or from 1: what most episodes begin with tells, and one stray row must not. A scan of its own, so
-- that a question about one episode reads that one alone.
numbered AS (
    SELECT coalesce(first(first_step), 0) AS first_step FROM (
        SELECT first_step FROM (SELECT min(step) AS first_step FROM {steps} GROUP BY episode_id)
        WHERE first_step IS NOT NULL GROUP BY first_step ORDER BY count(*) DESC, first_step LIMIT 1
    )
)
SELECT episode_id, cluster, policy_version, n_steps, n_awaited, n_defaulted,
    CASE WHEN n_awaited = 0 THEN "return" END AS "return",
    start, "end", log_date, terminated, truncated,
    {ended} AND n_awaited = 0 AS complete,
    nullif(concat_ws('; ',
        CASE WHEN n IS NOT NULL THEN n || ' of its rows are in quarantine' END,
        CASE WHEN n_numbered = n_steps AND n_places < n_steps
            THEN (n_steps - n_places) || ' step numbers are repeated' END,
        CASE WHEN n_numbered = 0 AND n_places < n_steps
            THEN (n_steps - n_places) || ' steps have neither a number nor a time of their own' END,
        CASE WHEN n_numbered NOT IN (0, n_steps) THEN 'some of its steps have no number' END,
        CASE WHEN {str(not one_step).lower()} AND n_numbered = n_steps
                AND (max_step - min_step + 1 > n_places OR min_step > first_step)
            THEN (max_step - least(first_step, min_step) + 1 - n_places) || ' steps are missing' END,
        CASE WHEN cluster <> other_cluster THEN 'it belongs to more than one cluster' END,
        CASE WHEN n_ends > (terminated OR truncated)::INTEGER THEN 'it goes on after its end' END,
        CASE WHEN n_contradicted > 0
            THEN 'how ' || n_contradicted || ' of its steps ended is told in contradicting ways' END,
        CASE WHEN first_at - start > {apart} OR "end" - last_at > {apart}
            THEN 'its clock jumps: the times of its steps contradict their order' END,
        CASE WHEN n_out_of_range > 0
            THEN 'the outcomes of ' || n_out_of_range || ' steps make rewards outside the contract''s range' END
    ), '') AS damage,
    {"excluded" if rules else "NULL::VARCHAR AS excluded"},
    {now} AS as_of
FROM counted LEFT JOIN quarantined USING (episode_id){left_out}, numbered"""


def _placed_steps_sql(steps: str, outcomes: str, contract: Contract, now: str) -> str:
    """Steps with their settled reward, their place in the episode, and what outcomes mean for them."""
    columns = "episode_id, step, s.timestamp, log_date, cluster, policy_version"
    place = "coalesce(step, epoch_us(s.timestamp)) AS place"  # steps without a number are ordered by time
    rules = contract.outcomes
    if rules is None:
        nothing = "false AS is_awaited, false AS is_defaulted, false AS is_out_of_range, false AS contradicts_end"
        return f"SELECT {columns}, terminated, truncated, {place}, reward, {nothing} FROM {steps} s"
    is_awaited = f"s.reward IS NULL AND {now} <= {window_end_sql('s.timestamp', rules)}"
    low, high = contract.reward.min, contract.reward.max
    limits = [f"c.reward < {low!r}" if low is not None else "", f"c.reward > {high!r}" if high is not None else ""]
    outside = " OR ".join(["NOT isfinite(c.reward)", *filter(None, limits)])
    ended = step_end_sql("s", "e")
    return f"""
    SELECT {columns}, {ended["terminated"]} AS terminated, {ended["truncated"]} AS truncated,
        {ended["contradicts_end"]} AS contradicts_end,
        {place}, {_settled_reward(contract)} AS reward, {is_awaited} AS is_awaited,
        s.reward IS NULL AND c.reward IS NULL AND NOT ({is_awaited}) AS is_defaulted,
        NOT ({is_awaited}) AND coalesce({outside}, false) AS is_out_of_range
    FROM {_with_outcomes(steps, outcomes, contract, until=now)}"""


def _settled_reward(contract: Contract) -> str:
    """The reward of step `s`: its own, else what its outcomes `c` make together, else the default."""
    return f"coalesce(s.reward, c.reward, {contract.outcomes.default!r})" if contract.outcomes else "s.reward"


def _settled(contract: Contract) -> str:
    """The columns of step `s` that outcomes may settle: its reward, and how it ended."""
    if contract.outcomes is None:
        return "s.reward AS reward"
    ended = step_end_sql("s", "e")
    columns = ", ".join(f"{ended[name]} AS {name}" for name in ("terminated", "truncated", "final_observation"))
    return f"{_settled_reward(contract)} AS reward, {columns}"


def _with_outcomes(steps: str, outcomes: str, contract: Contract, *, until: str | None = None) -> str:
    """FROM clause of every step as `s`, with the combined outcomes as `c` of those that await any, and as `e` the ends
    of episodes that outcomes tell of, up to `until`."""
    if contract.outcomes is None:
        return f"{steps} s"
    combined = combined_outcomes_sql(steps, outcomes, contract.outcomes)
    ends = ends_sql(steps, outcomes, contract, until=until)
    return (
        f"{steps} s LEFT JOIN ({combined}) c ON c.decision_id = s.decision_id "
        f"LEFT JOIN ({ends}) e ON e.decision_id = s.decision_id"
    )


def lost_rows_sql(steps: str, outcomes: str, quarantine: str, contract: Contract) -> str:
    """A SELECT of the episode_id (null where unknown) of every quarantined row that is missing from an episode.

    A row of a rejected batch that was read again, under a mended contract, is no longer missing, nor is a step that was
    sent again as it should be: its `identity` tells, where it could be made out. A quarantined outcome belongs to the
    episode of its decision; it is missing only where that step awaits outcomes.

    Args:
        steps, outcomes, quarantine: SQL relations of those tables, as logged.
    """
    quarantined_steps = f"(SELECT * FROM {quarantine} WHERE kind = 'steps')"
    came_after_all = f"""(
        SELECT identity FROM (SELECT {identity_sql()} AS identity FROM {steps})
        SEMI JOIN (SELECT identity FROM {quarantined_steps} WHERE identity IS NOT NULL) USING (identity))"""
    lost_steps = _unread("episode_id", steps, f"(FROM {quarantined_steps} ANTI JOIN {came_after_all} USING (identity))")
    if contract.outcomes is None:
        return lost_steps
    lost_outcomes = _unread("decision_id", outcomes, f"(SELECT * FROM {quarantine} WHERE kind = 'outcomes')")
    return f"""{lost_steps}
    UNION ALL
    SELECT s.episode_id FROM ({lost_outcomes}) q LEFT JOIN {steps} s ON s.decision_id = q.decision_id
    WHERE q.decision_id IS NULL OR (s.episode_id IS NOT NULL AND s.reward IS NULL)"""


def _unread(column: str, table: str, quarantine: str) -> str:
    return f"""
    SELECT {column} FROM {quarantine} WHERE NOT starts_with(reason, {literal(REJECTED)})
    UNION ALL
    SELECT {column} FROM (SELECT * FROM {quarantine} WHERE starts_with(reason, {literal(REJECTED)}))
    ANTI JOIN {table} USING (source, source_line)"""


def settled_steps_sql(steps: str, outcomes: str, episodes: str, contract: Contract) -> str:
    """A SELECT with one row per step of a complete, undamaged, not excluded episode, in no order.

    Columns: all of steps, with `reward` as settled by outcomes where it was awaited, the end flags and final
    observation as settled by them too, and `night`, the day on which the episode started.

    Args:
        steps, outcomes: SQL relations of those tables, as logged.
        episodes: SQL relation of `episodes_sql`.
    """
    return f"""
SELECT s.* REPLACE ({_settled(contract)}), p.log_date AS night
FROM {_with_outcomes(steps, outcomes, contract)} JOIN {episodes} p ON p.episode_id = s.episode_id
WHERE p.complete AND p.damage IS NULL AND p.excluded IS NULL"""


def transitions_sql(steps: str, outcomes: str, episodes: str, contract: Contract) -> str:
    """A SELECT with one row per step of a complete, undamaged, not excluded episode: its position and what followed.

    Columns: all of steps, with `reward` as settled by outcomes where it was awaited, the end flags and final
    observation as settled by them too, and `position` (0 for the episode's first step), `episode_start`,
    `next_observation` (the next step's, or the final observation of a truncated end), and `ends_terminated`,
    `ends_truncated`: the flags after idleness was taken for an end as the contract says.

    Args:
        steps, outcomes: SQL relations of those tables, as logged.
        episodes: SQL relation of `episodes_sql`.
    """
    by_idleness = contract.episodes.on_timeout
    idle_end = "is_last AND NOT terminated AND NOT truncated"
    return f"""
SELECT * EXCLUDE (is_last),
    coalesce(lead_observation, final_observation) AS next_observation,
    terminated OR ({str(by_idleness == "terminated").lower()} AND {idle_end}) AS ends_terminated,
    truncated OR ({str(by_idleness == "truncated").lower()} AND {idle_end}) AS ends_truncated
FROM (
    SELECT s.* REPLACE ({_settled(contract)}),
        p.start AS episode_start, p.log_date AS episode_log_date, p.n_steps,
        row_number() OVER same - 1 AS position,
        lead(observation) OVER same AS lead_observation,
        row_number() OVER same = p.n_steps AS is_last
    FROM {_with_outcomes(steps, outcomes, contract)} JOIN {episodes} p ON p.episode_id = s.episode_id
    WHERE p.complete AND p.damage IS NULL AND p.excluded IS NULL
    WINDOW same AS (PARTITION BY s.episode_id ORDER BY step NULLS LAST, s.timestamp)
)"""

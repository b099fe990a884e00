"""Episodes derived from steps: whether each has ended, and whether every row of it can be trusted."""

from __future__ import annotations

from datetime import datetime

from datasets.contract import Contract
from datasets.duck import literal

REJECTED = "rejected by "
"""How the reason of a quarantined row begins whose whole batch a person rejected."""


def episodes_sql(steps: str, quarantine: str, contract: Contract, as_of: datetime) -> str:
    """A SELECT with one row per episode, as seen at `as_of`.

    An episode is complete when its last step is terminated or truncated, or when it has been idle for longer than the
    contract's timeout. It is damaged, with the cause in words, when a row of it is in quarantine, when a step is
    missing or repeated, or when it goes on after its end: such an episode takes no part in training or evaluation,
    because what is missing may well be its worst part. A row of a rejected batch that was read again, under a mended
    contract, is no longer missing.

    Args:
        steps, quarantine: SQL relations of those tables.

    Returns:
        Columns episode_id, cluster, policy_version (of the first step), n_steps, return (sum of rewards, not
        discounted), start, end, log_date (of the start), terminated, truncated (as logged at the last step),
        complete, damage (null where there is none), as_of.
    """
    now = f"TIMESTAMPTZ {literal(as_of.isoformat())}"
    idle = f'"end" <= {now} - INTERVAL {contract.episodes.timeout_s} SECONDS'
    one_step = contract.episodes.kind == "one_step"
    return f"""
WITH firsts AS (SELECT min(step) AS first_step FROM {steps} GROUP BY episode_id),
-- Logs count from 0 or from 1: what most episodes begin with tells, and one stray row must not.
numbered AS (SELECT coalesce(mode(first_step), 0) AS first_step FROM firsts),
lost AS ({lost_rows_sql(steps, quarantine)}),
quarantined AS (SELECT episode_id, count(*) AS n FROM lost WHERE episode_id IS NOT NULL GROUP BY 1),
-- NULLS LAST: steps without a number are ordered by time
ordered AS (
    SELECT episode_id, step, timestamp, log_date, cluster, policy_version, reward, terminated, truncated,
        row_number() OVER (PARTITION BY episode_id ORDER BY step NULLS LAST, timestamp)
            = count(*) OVER (PARTITION BY episode_id) AS is_last
    FROM {steps}
),
counted AS (
    SELECT episode_id,
        min(cluster) AS cluster,
        arg_min_null(policy_version, coalesce(step, epoch_us(timestamp))) AS policy_version,
        count(*) AS n_steps,
        sum(reward) AS "return",
        min(timestamp) AS start,
        max(timestamp) AS "end",
        min(log_date) AS log_date,
        bool_or(terminated AND is_last) AS terminated,
        bool_or(truncated AND is_last) AS truncated,
        count(DISTINCT cluster) AS n_clusters,
        count(DISTINCT step) AS n_numbers,
        count(step) AS n_numbered,
        min(step) AS min_step,
        max(step) AS max_step,
        bool_or((terminated OR truncated) AND NOT is_last) AS goes_on
    FROM ordered GROUP BY episode_id
)
SELECT episode_id, cluster, policy_version, n_steps, "return", start, "end", log_date, terminated, truncated,
    {"true" if one_step else f"coalesce(terminated OR truncated OR {idle}, false)"} AS complete,
    nullif(concat_ws('; ',
        CASE WHEN n IS NOT NULL THEN n || ' of its rows are in quarantine' END,
        CASE WHEN n_numbered > n_numbers THEN (n_numbered - n_numbers) || ' step numbers are repeated' END,
        CASE WHEN n_numbered NOT IN (0, n_steps) THEN 'some of its steps have no number' END,
        CASE WHEN {str(not one_step).lower()} AND (max_step - min_step + 1 > n_numbers OR min_step > first_step)
            THEN (max_step - least(first_step, min_step) + 1 - n_numbers) || ' steps are missing' END,
        CASE WHEN n_clusters > 1 THEN 'it belongs to ' || n_clusters || ' clusters' END,
        CASE WHEN goes_on THEN 'it goes on after its end' END
    ), '') AS damage,
    {now} AS as_of
FROM counted LEFT JOIN quarantined USING (episode_id), numbered"""


def lost_rows_sql(steps: str, quarantine: str) -> str:
    """A SELECT of the episode_id (null where unknown) of every quarantined row that never came in another way.

    A row of a rejected batch that was read again, under a mended contract, is no longer missing.
    """
    return f"""
    SELECT episode_id FROM {quarantine} WHERE NOT starts_with(reason, {literal(REJECTED)})
    UNION ALL
    SELECT episode_id FROM (SELECT * FROM {quarantine} WHERE starts_with(reason, {literal(REJECTED)}))
    ANTI JOIN {steps} USING (source, source_line)"""


def transitions_sql(steps: str, episodes: str, contract: Contract) -> str:
    """A SELECT with one row per step of a complete, undamaged episode, with its position and what followed.

    Columns: all of steps, and `position` (0 for the episode's first step), `episode_start`, `next_observation` (the
    next step's, or the final observation of a truncated end), and `ends_terminated`, `ends_truncated`: the flags
    after idleness was taken for an end as the contract says.
    """
    by_idleness = contract.episodes.on_timeout
    idle_end = "is_last AND NOT terminated AND NOT truncated"
    return f"""
SELECT * EXCLUDE (is_last),
    coalesce(lead_observation, final_observation) AS next_observation,
    terminated OR ({str(by_idleness == "terminated").lower()} AND {idle_end}) AS ends_terminated,
    truncated OR ({str(by_idleness == "truncated").lower()} AND {idle_end}) AS ends_truncated
FROM (
    SELECT s.*, e.start AS episode_start, e.log_date AS episode_log_date, e.n_steps,
        row_number() OVER same - 1 AS position,
        lead(observation) OVER same AS lead_observation,
        row_number() OVER same = e.n_steps AS is_last
    FROM {steps} s JOIN {episodes} e USING (episode_id)
    WHERE e.complete AND e.damage IS NULL
    WINDOW same AS (PARTITION BY episode_id ORDER BY step NULLS LAST, s.timestamp)
)"""

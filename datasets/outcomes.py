"""Rewards that arrive later: which outcomes make the reward of which decision, and what becomes of the others.

Outcomes are stored as they were logged and never changed. What they are worth is a query over the lake: an outcome that
came in before its decision finds it once the decision is there, whatever the order of files.
"""

from __future__ import annotations

from datasets.contract import OutcomeRules

STATUSES = ("counted", "early", "late", "duplicate", "already rewarded", "dangling")
"""What may become of an outcome. Counted: it lies in the window of a decision that awaits it. Early, late: it lies
before its decision or behind the window. Duplicate: another one has the same decision, time and reward. Already
rewarded: the step was logged with a reward of its own. Dangling: no step in the lake has its `decision_id`."""


def combined_outcomes_sql(steps: str, outcomes: str, rules: OutcomeRules) -> str:
    """A SELECT with one row per decision that awaits outcomes and has at least one in its window.

    An outcome counts from the instant of its decision to the end of the window, both included. Exact repeats count
    once. Of two outcomes with the last timestamp, `last` takes the larger. Sums are taken in the order of time, so
    that the same rows give the same bits wherever they are stored.

    Args:
        steps, outcomes: SQL relations of those tables, as logged.

    Returns:
        Columns decision_id and reward.
    """
    # Repeats cannot change the last or the largest.
    distinct = "DISTINCT" if rules.combine == "sum" else ""
    if rules.combine == "sum":
        combined = "list_sum(list(reward ORDER BY timestamp, reward))"
    elif rules.combine == "last":
        combined = "arg_max(reward, {'at': timestamp, 'reward': reward})"
    else:
        combined = "max(reward)"
    return f"""
SELECT decision_id, {combined} AS reward FROM (
    SELECT {distinct} o.decision_id, o.timestamp, o.reward
    FROM {outcomes} o JOIN {steps} s ON s.decision_id = o.decision_id
    WHERE s.reward IS NULL AND o.timestamp >= s.timestamp AND o.timestamp <= {window_end_sql("s.timestamp", rules)}
) GROUP BY decision_id"""


def window_end_sql(timestamp: str, rules: OutcomeRules) -> str:
    """The last instant at which an outcome of a decision counts."""
    return f"({timestamp} + INTERVAL {round(rules.window_s * 1e6)} MICROSECONDS)"


def outcomes_status_sql(steps: str, outcomes: str, rules: OutcomeRules) -> str:
    """A SELECT with one row per outcome in the lake: its own columns, `episode_id` and `decided_at` of its decision
    (null where there is none) and its `status`, one of STATUSES.

    Of exact repeats, the first by source and line is the one that may count.

    Args:
        steps, outcomes: SQL relations of those tables, as logged.
    """
    return f"""
SELECT o.* EXCLUDE (copy), s.episode_id, s.timestamp AS decided_at,
    CASE WHEN copy > 1 THEN 'duplicate'
        WHEN s.decision_id IS NULL THEN 'dangling'
        WHEN s.reward IS NOT NULL THEN 'already rewarded'
        WHEN o.timestamp < s.timestamp THEN 'early'
        WHEN o.timestamp > {window_end_sql("s.timestamp", rules)} THEN 'late'
        ELSE 'counted' END AS status
FROM (
    SELECT *, row_number() OVER (
        PARTITION BY decision_id, timestamp, reward ORDER BY source, source_line, batch_id
    ) AS copy
    FROM {outcomes}
) o LEFT JOIN {steps} s ON s.decision_id = o.decision_id"""

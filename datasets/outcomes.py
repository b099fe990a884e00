"""What is known later: which outcomes make the reward of which decision, or end its episode, and what becomes of the
others.

Outcomes are stored as they were logged and never changed. What they are worth is a query over the lake: an outcome that
came in before its decision finds it once the decision is there, whatever the order of files.
"""

from __future__ import annotations

from datasets.contract import Contract, OutcomeRules

STATUSES = ("counted", "early", "late", "duplicate", "already rewarded", "dangling", "no reward")
"""What may become of an outcome's reward. Counted: it lies in the window of a decision that awaits it. Early, late: it
lies before its decision or behind the window. Duplicate: another one has the same decision, time and reward. Already
rewarded: the step was logged with a reward of its own. Dangling: no step in the lake has its `decision_id`. No reward:
it brings none."""

END_STATUSES = ("counted", "early", "late", "repeated", "contradicting", "dangling")
"""What may become of the end of an episode that an outcome tells of. Counted: it is the episode's end. Early, late:
it lies before its decision, or so long behind it that idleness had ended the episode. Repeated: the step itself, or
an earlier outcome, says the same, perhaps without the final observation. Contradicting: they say otherwise, and the
episode is damaged. Dangling: as above."""


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
    WHERE o.reward IS NOT NULL AND s.reward IS NULL
        AND o.timestamp >= s.timestamp AND o.timestamp <= {window_end_sql("s.timestamp", rules)}
) GROUP BY decision_id"""


def window_end_sql(timestamp: str, rules: OutcomeRules) -> str:
    """The last instant at which an outcome of a decision counts."""
    return f"({timestamp} + INTERVAL {round(rules.window_s * 1e6)} MICROSECONDS)"


def end_window_sql(timestamp: str, contract: Contract) -> str:
    """The last instant at which the end of an episode may follow its last decision: then idleness has ended it."""
    return f"({timestamp} + INTERVAL {round(contract.episodes.timeout_s * 1e6)} MICROSECONDS)"


def ends_sql(steps: str, outcomes: str, contract: Contract, *, until: str | None = None) -> str:
    """A SELECT with one row per decision with which an episode ended, as outcomes tell.

    An end counts from the instant of its decision until idleness ends the episode, both included. The first one holds,
    whatever the order of files; of two at one time `terminated` comes first. One that lacks the final observation is
    completed by one that has it.

    Args:
        steps, outcomes: SQL relations of those tables, as logged.
        until: SQL instant; ends behind it have not happened yet.

    Returns:
        Columns decision_id, terminated, truncated, final_observation, and is_contradicted: whether the outcomes
        contradict each other.
    """
    first = f"{{'at': o.timestamp, 'truncated': o.truncated, 'final': {_text('o.final_observation')}}}"
    seen = f" AND o.timestamp <= {until}" if until else ""
    return f"""
SELECT o.decision_id, arg_min(o.terminated, {first}) AS terminated, arg_min(o.truncated, {first}) AS truncated,
    arg_min(o.final_observation, {first}) AS final_observation,
    count(DISTINCT o.terminated) > 1 OR count(DISTINCT {_text("o.final_observation")}) > 1 AS is_contradicted
FROM {outcomes} o JOIN {steps} s ON s.decision_id = o.decision_id
WHERE (o.terminated OR o.truncated) AND o.timestamp >= s.timestamp
    AND o.timestamp <= {end_window_sql("s.timestamp", contract)}{seen}
GROUP BY o.decision_id"""


def step_end_sql(step: str, end: str) -> dict[str, str]:
    """How a step ended by its own flags and by the `ends_sql` row of its decision, which may be missing.

    What the step was logged with holds.

    Args:
        step, end: names of the two relations.

    Returns:
        SQL of terminated, truncated, final_observation, and contradicts_end: whether the outcomes contradict the step
        or each other.
    """
    other = (
        f"{end}.terminated AND {step}.truncated OR {end}.truncated AND {step}.terminated "
        f"OR {step}.truncated AND {_text(f'{end}.final_observation')} <> {_text(f'{step}.final_observation')}"
    )
    truncated = f"({step}.truncated OR coalesce({end}.truncated AND NOT {step}.terminated, false))"
    return {
        "terminated": f"({step}.terminated OR coalesce({end}.terminated AND NOT {step}.truncated, false))",
        "truncated": truncated,
        "final_observation": (
            f"coalesce({step}.final_observation, CASE WHEN {truncated} THEN {end}.final_observation END)"
        ),
        "contradicts_end": f"coalesce({end}.is_contradicted OR {other}, false)",
    }


def _text(struct: str) -> str:
    """A struct as text that is null where it is."""
    return f"CASE WHEN {struct} IS NOT NULL THEN to_json({struct})::VARCHAR END"


def outcomes_status_sql(steps: str, outcomes: str, contract: Contract) -> str:
    """A SELECT with one row per outcome in the lake: its own columns, `episode_id` and `decided_at` of its decision
    (null where there is none), its `status`, one of STATUSES, and its `end_status`, one of END_STATUSES; null where it
    tells of no end.

    Of exact repeats, the first by source and line is the one that may count.

    Args:
        steps, outcomes: SQL relations of those tables, as logged.
        contract: one with outcomes.
    """
    assert contract.outcomes is not None
    differs = (
        "o.terminated <> CASE WHEN s.terminated OR s.truncated THEN s.terminated ELSE e.terminated END "
        f"OR {_text('o.final_observation')} <> {_text('coalesce(s.final_observation, e.final_observation)')}"
    )
    in_time = f"o.timestamp BETWEEN s.timestamp AND {end_window_sql('s.timestamp', contract)}"
    same_end = "o.decision_id, (o.terminated OR o.truncated) AND " + in_time
    return f"""
SELECT o.* EXCLUDE (copy), s.episode_id, s.timestamp AS decided_at,
    CASE WHEN o.reward IS NULL THEN 'no reward'
        WHEN copy > 1 THEN 'duplicate'
        WHEN s.decision_id IS NULL THEN 'dangling'
        WHEN s.reward IS NOT NULL THEN 'already rewarded'
        WHEN o.timestamp < s.timestamp THEN 'early'
        WHEN o.timestamp > {window_end_sql("s.timestamp", contract.outcomes)} THEN 'late'
        ELSE 'counted' END AS status,
    CASE WHEN NOT (o.terminated OR o.truncated) THEN NULL
        WHEN s.decision_id IS NULL THEN 'dangling'
        WHEN o.timestamp < s.timestamp THEN 'early'
        WHEN o.timestamp > {end_window_sql("s.timestamp", contract)} THEN 'late'
        WHEN coalesce({differs}, false) THEN 'contradicting'
        WHEN s.terminated OR s.truncated OR row_number() OVER (
            PARTITION BY {same_end} ORDER BY o.timestamp, o.truncated, {_text("o.final_observation")},
                o.source, o.source_line, o.batch_id
        ) > 1 THEN 'repeated'
        ELSE 'counted' END AS end_status
FROM (
    SELECT *, row_number() OVER (
        PARTITION BY decision_id, timestamp, reward ORDER BY source, source_line, batch_id
    ) AS copy
    FROM {outcomes}
) o LEFT JOIN {steps} s ON s.decision_id = o.decision_id
LEFT JOIN ({ends_sql(steps, outcomes, contract)}) e ON e.decision_id = o.decision_id"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from datasets.contract import contract_from_text
from datasets.observations import Observations
from datasets.replay import GATE, Replay
from reports.promises import broken_sentence, earned_words, judge_promise
from reports.proof_records import Promise
from reports.records import Estimate, Evaluation, Interval
from tests.reports.report_samples import passed_evaluation

CONTRACT = """
name = "clicks"
gamma = {gamma}
[features.x]
type = "numeric"
[actions]
names = ["left", "right"]
[reward]
{bounds}
[episodes]
kind = "one_step"
"""


def promising(low: float, high: float) -> Evaluation:
    """An evaluation that promises [low, high], with gamma 1 and episodes of one step."""
    found = passed_evaluation()
    own = Estimate("dr", "candidate", (low + high) / 2, Interval(low, high, 0.95, "bootstrap"), "logged", binding=True)
    return replace(
        found, deciding_estimator="dr", estimates=(own,), gamma=1.0, feasible=replace(found.feasible, longest_episode=1)
    )


def wrote(
    returns: NDArray[np.float64], *, per_night: int = 100, gamma: float = 1.0, bounds: str = "min = 0.0\nmax = 1.0"
) -> Replay:
    n = len(returns)
    return Replay(
        contract=contract_from_text(CONTRACT.format(gamma=gamma, bounds=bounds), "test"),
        digest="",
        observations=Observations({"x": np.zeros(n)}, {}),
        available=np.ones((n, 2), dtype=bool),
        actions=np.zeros(n, dtype=np.int64),
        rewards=returns,
        terminated=np.ones(n, dtype=bool),
        truncated=np.zeros(n, dtype=bool),
        next_row=np.full(n, -1),
        behavior_prob=np.full(n, 0.5),
        offsets=np.arange(n + 1),
        episode_ids=np.array([f"e{i}" for i in range(n)], dtype=object),
        clusters=np.arange(n),
        nights=np.datetime64("2024-05-01") + np.arange(n) // per_night,
        policy_versions=np.full(n, "3", dtype=object),
        split=np.full(n, GATE, dtype=np.int8),
    )


def judged(returns: NDArray[np.float64], low: float = 0.5, high: float = 0.6) -> Promise:
    return judge_promise(3, "2024-05-01T00:00:00+00:00", promising(low, high), wrote(returns))


def clicks(rate: float, n: int, seed: int = 0) -> NDArray[np.float64]:
    return (np.random.default_rng(seed).random(n) < rate).astype(np.float64)


@pytest.mark.parametrize(("rate", "verdict"), [(0.62, "kept"), (0.4, "broken"), (0.5, "too early to tell")])
def test_a_promise_is_kept_broken_or_open(rate: float, verdict: str) -> None:
    found = judged(clicks(rate, 3000))

    assert found.verdict == verdict
    assert (found.n_episodes, found.n_clusters, found.n_nights) == (3000, 3000, 30)
    assert (found.promised, found.promised_low, found.promised_high, found.level) == (0.55, 0.5, 0.6, 0.95)
    assert found.earned == pytest.approx(rate, abs=0.03)
    assert found.earned_low is not None
    assert found.earned_high is not None
    assert found.earned_low <= rate <= found.earned_high


def test_a_verdict_names_the_night_in_which_it_was_reached_and_stays() -> None:
    returns = clicks(0.4, 3000)
    first = judged(returns).since
    n_nights = int((np.datetime64(first) - np.datetime64("2024-05-01")).astype(int)) + 1

    assert judged(returns[: 100 * n_nights]).verdict == "broken"
    assert judged(returns[: 100 * (n_nights - 1)]).verdict == "too early to tell"


def test_promises_kept_exactly_are_seldom_called_broken_however_often_one_looks() -> None:
    """The worst world: the release earns just what was promised. 200 releases, read on each of 20 nights at 2.5 %: at
    most 5 are expected, and 12 or more have a chance of .5 %."""
    broken = sum(judged(clicks(0.5, 2000, seed)).verdict == "broken" for seed in range(200))

    assert broken < 12


def test_a_night_by_night_t_interval_would_break_many_of_the_same_promises() -> None:
    def alarms(returns: NDArray[np.float64]) -> bool:
        ends = np.arange(100, 2001, 100)
        return any(r.mean() + 1.96 * r.std() / np.sqrt(len(r)) < 0.5 for r in (returns[:end] for end in ends))

    assert sum(alarms(clicks(0.5, 2000, seed)) for seed in range(200)) > 20


def test_a_broken_promise_is_a_sentence_with_its_numbers() -> None:
    sentence = broken_sentence(judged(clicks(0.4, 3000)))

    assert sentence.startswith("release 3 broke its promise: over 3,000 episodes of 30 nights it earned 0.4")
    assert sentence.endswith("where its evaluation promised at least 0.5")
    assert broken_sentence(judged(clicks(0.62, 3000))) == ""


def test_nothing_written_yet_is_too_early() -> None:
    found = judge_promise(3, "2024-05-01T00:00:00+00:00", promising(0.5, 0.6), None)

    assert (found.verdict, found.cause) == ("too early to tell", "it has written no episode that is over")


def test_a_release_without_evaluation_promised_nothing() -> None:
    found = judge_promise(3, "2024-05-01T00:00:00+00:00", None, wrote(clicks(0.5, 10)))

    assert (found.verdict, found.cause) == ("cannot be judged", "no evaluation promised a value of it")


def test_an_estimate_that_was_refused_promised_nothing() -> None:
    refused = replace(
        promising(0.5, 0.6), estimates=(Estimate("dr", "candidate", None, None, "logged", refused="thin"),)
    )

    assert judge_promise(3, "", refused, wrote(clicks(0.5, 10))).verdict == "cannot be judged"


def test_a_changed_discount_makes_two_numbers_incomparable() -> None:
    found = judge_promise(3, "", promising(0.5, 0.6), wrote(clicks(0.5, 10), gamma=0.9))

    assert found.cause == "gamma was 1 in its evaluation and is 0.9 now"


def test_an_unbounded_reward_has_no_sequence() -> None:
    found = judge_promise(3, "", promising(0.5, 0.6), wrote(clicks(0.5, 10), bounds="min = 0.0"))

    assert found.verdict == "cannot be judged"
    assert "reward.min and reward.max are not both set" in found.cause


def test_a_mean_that_moves_is_not_held_to_one_value() -> None:
    found = judged(np.concatenate([clicks(0.9, 3000), clicks(0.1, 6000)]))

    assert found.verdict == "cannot be judged"
    assert "did not stay the same" in found.cause
    assert found.crossed
    assert earned_words(found).endswith(", no one interval")


def test_what_stayed_the_same_is_shown_with_its_interval() -> None:
    found = judged(clicks(0.5, 3000))

    assert not found.crossed
    assert earned_words(found).startswith(f"{found.earned:.3f} [")

"""What keeps a replay dataset from being trained on, counted block by block and said once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datasets.contract import Contract
from datasets.replay import Replay


@dataclass(frozen=True)
class Spotted:
    """How often a fault was found, and where first; "" where it was not."""

    n: int = 0
    first: str = ""

    def merged(self, later: Spotted) -> Spotted:
        """Of this part of the data and one behind it."""
        return Spotted(self.n + later.n, self.first or later.first)


@dataclass(frozen=True)
class DataCheck:
    """What was found in a part of a replay dataset with D encoded columns and A actions.

    Attributes:
        n_steps, n_episodes, n_usable: looked at; usable steps can be a target.
        any_ended: whether a usable step ended its task.
        finite: (D,) bool, columns whose every value is finite.
        silent: (D,) bool, columns that are 0 in every row.
        taken, offered: (A,) bool, actions logged at usable steps, and those available at any.
        lowest_reward, highest_reward: of all rewards that are finite; inf and -inf where none is.
        not_finite, bad_rewards, forbidden, stuck: rows of observations that are not finite, rewards that are not,
            logged actions that were not available, next observations at which no action is.
    """

    n_steps: int
    n_episodes: int
    n_usable: int
    any_ended: bool
    finite: NDArray[np.bool_]
    silent: NDArray[np.bool_]
    taken: NDArray[np.bool_]
    offered: NDArray[np.bool_]
    lowest_reward: float
    highest_reward: float
    not_finite: Spotted
    bad_rewards: Spotted
    forbidden: Spotted
    stuck: Spotted

    @staticmethod
    def of(
        replay: Replay, encoded: NDArray[np.float32], usable: NDArray[np.int64], ended: NDArray[np.bool_]
    ) -> DataCheck:
        """Looks at every row.

        Args:
            replay: T steps, M observations.
            encoded: (M, D) of its observations.
            usable: steps that can be a target.
            ended: (T,) bool, steps behind which no value follows.
        """
        finite = np.isfinite(encoded)
        followed = usable[~ended[usable]]
        next_rows = replay.next_row[followed]
        actions = replay.actions[usable]
        forbidden = usable[~replay.available[usable, actions]]
        rewards = replay.rewards[np.isfinite(replay.rewards)]
        return DataCheck(
            n_steps=replay.n_steps,
            n_episodes=replay.n_episodes,
            n_usable=len(usable),
            any_ended=len(followed) < len(usable),
            finite=np.asarray(finite.all(axis=0)),
            silent=np.asarray(~encoded.any(axis=0)),
            taken=np.isin(np.arange(replay.n_actions), actions),
            offered=np.asarray(replay.available[usable].any(axis=0)),
            lowest_reward=float(rewards.min(initial=np.inf)),
            highest_reward=float(rewards.max(initial=-np.inf)),
            not_finite=_spotted_rows(replay, np.flatnonzero(~finite.all(axis=1))),
            bad_rewards=_spotted(replay, np.flatnonzero(~np.isfinite(replay.rewards))),
            forbidden=_spotted(replay, forbidden, label=True),
            stuck=_spotted(replay, followed[~replay.available[next_rows].any(axis=1)]),
        )

    def merged(self, later: DataCheck) -> DataCheck:
        """Of this part of the data and one behind it."""
        return DataCheck(
            n_steps=self.n_steps + later.n_steps,
            n_episodes=self.n_episodes + later.n_episodes,
            n_usable=self.n_usable + later.n_usable,
            any_ended=self.any_ended or later.any_ended,
            finite=self.finite & later.finite,
            silent=self.silent & later.silent,
            taken=self.taken | later.taken,
            offered=self.offered | later.offered,
            lowest_reward=min(self.lowest_reward, later.lowest_reward),
            highest_reward=max(self.highest_reward, later.highest_reward),
            not_finite=self.not_finite.merged(later.not_finite),
            bad_rewards=self.bad_rewards.merged(later.bad_rewards),
            forbidden=self.forbidden.merged(later.forbidden),
            stuck=self.stuck.merged(later.stuck),
        )

    def problems(self, contract: Contract, columns: tuple[str, ...]) -> list[str]:
        """Sentences, one for each fault; `columns` are the names of the D encoded columns."""
        if not self.n_usable:
            return [
                f"none of the {self.n_steps} steps of {self.n_episodes} episodes can be learned from: a step needs "
                "a next observation or terminated = true. Log a following step, or final_observation where one is cut."
            ]
        problems = []
        if self.not_finite.n:
            bad = np.flatnonzero(~self.finite)
            names = ", ".join(columns[column] for column in bad[:5])
            problems.append(
                f"encoded observations are not finite in {len(bad)} columns ({names}), first {self.not_finite.first}; "
                "a value of the log is infinite or too large for float32"
            )
        if self.bad_rewards.n:
            problems.append(
                f"reward is not finite in {self.bad_rewards.n} of {self.n_steps} steps, first {self.bad_rewards.first}"
            )
        if self.forbidden.n:
            problems.append(
                f"the logged action was not available in {self.forbidden.n} steps, first {self.forbidden.first}; "
                "correct available_actions upstream"
            )
        if self.stuck.n:
            problems.append(
                f"no action is available at {self.stuck.n} next observations, first that behind {self.stuck.first}"
            )
        if contract.gamma == 1.0 and not self.any_ended:
            problems.append(
                "gamma = 1 and no episode terminates: the values are infinite sums. Set gamma below 1 in the contract, "
                'or log terminated = true where the task ends (on_timeout = "terminated" if idleness ends it)'
            )
        return problems

    def warnings(self, contract: Contract) -> list[str]:
        """Sentences on what can be trained on and yet teaches little."""
        names = np.array(contract.actions.names)
        found = []
        if self.taken.sum() == 1:
            found.append(
                f"every logged action is '{names[self.taken][0]}': the log says nothing about the others, and only the "
                "penalty ranks them"
            )
        elif (never := names[self.offered & ~self.taken]).size:
            found.append(
                f"the log never takes {', '.join(repr(str(name)) for name in never)} in {self.n_usable:,} steps: what "
                "follows is not known, and no such policy can be judged; the penalty and BCQ keep away from it"
            )
        if self.n_episodes == 1:
            found.append(
                f"all {self.n_steps:,} steps are of a single episode: what it met by chance is all there is to learn"
            )
        if self.lowest_reward == self.highest_reward:
            found.append(f"every reward is {self.lowest_reward:g}: {_what_is_left(contract, self.lowest_reward)}")
        return found


def _what_is_left(contract: Contract, reward: float) -> str:
    if reward == 0.0 or contract.episodes.kind == "one_step":
        return "no action is better than another; see how the reward is logged"
    return "only how long episodes last tells actions apart; see how the reward is logged if that is not meant"


def _spotted(replay: Replay, steps: NDArray[np.int64], *, label: bool = False) -> Spotted:
    """Steps with a fault; the first by its episode, behind the label of its action if wanted."""
    if not len(steps):
        return Spotted()
    step = int(steps[0])
    episode = int(np.searchsorted(replay.offsets, step, side="right")) - 1
    where = f"in episode '{replay.episode_ids[episode]}' step {step - replay.offsets[episode]}"
    return Spotted(len(steps), f"'{replay.contract.actions.names[replay.actions[step]]}' {where}" if label else where)


def _spotted_rows(replay: Replay, rows: NDArray[np.int64]) -> Spotted:
    """Observations with a fault; a final one is named by the step that it follows."""
    if not len(rows):
        return Spotted()
    final = rows[0] >= replay.n_steps
    first = _spotted(replay, np.flatnonzero(replay.next_row == rows[0]) if final else rows)
    return Spotted(len(rows), f"behind the last step {first.first}" if final else first.first)

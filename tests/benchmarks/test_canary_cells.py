"""A slice of the simulated canaries that a grossly wrong test would fail, and the rows that become of them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks.calibration_files import canary_part
from tests.benchmarks.calibration_rows import calibration_table, canary_rows
from tests.benchmarks.canary_cells import CELLS, CanaryCell
from tests.benchmarks.canary_worlds import Autoscaler, Plain, SharedCapacity


def cell(world: str, candidate: str) -> CanaryCell:
    (found,) = (c for c in CELLS if c.world.endswith(world) and c.candidate == candidate)
    return found


def test_worse_is_stopped_better_promoted_and_equal_not_stopped() -> None:
    def endings(world: str, candidate: str, n: int = 3) -> list[str]:
        return [cell(world, candidate)(seed)["ending"] for seed in range(n)]

    assert endings("normal returns", "-0.5 sd") == ["stopped"] * 3
    assert endings("normal returns", "+0.3 sd") == ["promoted"] * 3
    assert endings("normal returns", "as good, 5 % of decisions late") == ["stopped"] * 3
    assert endings("autoscaler", "scales up at .4") == ["stopped"] * 3
    # With an error of 5 % two or more of four come in 1.4 % of such runs.
    assert endings("normal returns", "equal", 4).count("stopped") <= 1
    assert endings("normal returns", "worse by the margin", 4).count("promoted") <= 1


def test_slices_of_shared_capacity_show_a_gain_where_there_is_a_loss() -> None:
    world, hours = SharedCapacity(planned=0.4), np.arange(240)
    alone, none, half = (world.draw(np.random.default_rng(2), hours, share) for share in (1.0, 0.0, 0.5))
    assert alone.value.mean() - none.value.mean() == pytest.approx(-0.357, abs=0.03)
    assert half.value[half.candidate].mean() - half.value[~half.candidate].mean() > 0.1


def test_the_worlds_are_worth_what_they_say() -> None:
    for world in (Plain(effect=0.3, shape="skewed"), Plain(effect=-0.2, rhythm=1.0), Autoscaler(candidate=(0.5, 0.2))):
        drawn = world.draw(np.random.default_rng(3), np.arange(24 * 12), 0.5)
        ours, theirs = drawn.value[drawn.candidate], drawn.value[~drawn.candidate]
        error = np.sqrt(ours.var() / len(ours) + theirs.var() / len(theirs))
        assert ours.mean() - theirs.mean() == pytest.approx(world.gain, abs=4 * error)
        assert theirs.std() == pytest.approx(world.spread, rel=0.1)


def test_rows_tell_promises_from_power_and_say_what_it_took() -> None:
    ended = {"n_episodes": 900, "n_candidate": 100, "hours": 6, "cost": 20.0, "gain": -0.2}
    errors = canary_rows(
        cell("normal returns", "equal"), [{**ended, "ending": "promoted"}] * 99 + [{**ended, "ending": "stopped"}]
    )
    power = canary_rows(
        cell("normal returns", "-0.2 sd"), [{**ended, "ending": "stopped"}] * 9 + [{**ended, "ending": "promoted"}]
    )
    misled = canary_rows(cell("shared capacity, slices", "asks for more"), [{**ended, "ending": "promoted"}] * 5)
    assert (errors[0].kind, errors[0].observed, errors[0].met) == ("promise", 0.01, True)
    assert (power[0].kind, power[0].observed, power[0].met, power[0].cost) == ("comparison", 0.9, True, 20.0)
    assert (misled[0].kind, misled[0].observed) == ("comparison", 0.0)
    assert canary_rows(cell("normal returns", "equal"), []) == []
    page = "\n".join(canary_part([*errors, *power]))
    assert "| normal returns | -0.2 sd | -0.2 | power | 80% | 90.0% |" in page
    assert "canary, normal returns" in calibration_table([*errors, *power])

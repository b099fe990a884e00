"""The releases that `make calibrate` puts before the gate, in worlds with exact values."""

from __future__ import annotations

from tests.benchmarks.gate_release import GateCell
from tests.benchmarks.gate_worlds import Conditions


def _cells() -> tuple[GateCell, ...]:
    return (*_one_step(), *_five_steps(), *_twenty_steps(), *_long(), *_gymnasium(), *_limits())


def _one_step() -> tuple[GateCell, ...]:
    some = Conditions(horizon=1, n_episodes=400, noise=0.5)
    many = Conditions(horizon=1, n_episodes=1_000, noise=0.5)
    costs = Conditions(horizon=1, n_episodes=400, noise=0.5, cost=4.0)
    estimated = Conditions(horizon=1, n_episodes=1_000, noise=0.5, propensity="estimated")
    return (
        GateCell(table="one step", conditions=some, logger=1.0, direction="equal", shift=0.5),
        GateCell(table="one step", conditions=some, logger=1.0, direction="equal", shift=0.5, alpha=0.01,
                 note="stated level 1 %", logs=2),
        GateCell(table="one step", conditions=some, logger=1.0, direction="worse", shift=0.5),
        GateCell(table="one step", conditions=some, logger=1.0, direction="worse", shift=0.05, margin=0.0),
        GateCell(table="one step", conditions=some, logger=1.0, direction="worse", shift=0.1, margin=0.0),
        GateCell(table="one step", conditions=some, logger=1.0, direction="better", shift=0.1),
        GateCell(table="one step", conditions=some, logger=0.2, direction="worse", shift=0.5, note="poor overlap"),
        GateCell(table="one step", conditions=costs, logger=1.0, direction="equal", shift=0.5, note="costs"),
        GateCell(table="one step", conditions=costs, logger=0.2, direction="worse", shift=0.5,
                 note="costs, poor overlap"),
        GateCell(table="one step", conditions=estimated, logger=0.6, direction="equal", shift=0.3,
                 note="estimated propensities"),
        GateCell(table="one step", conditions=estimated, logger=0.6, direction="better", shift=0.3,
                 note="estimated propensities"),
        GateCell(table="one step", conditions=many, logger=0.6, direction="better", shift=0.3),
    )  # fmt: skip


def _five_steps() -> tuple[GateCell, ...]:
    some = Conditions(horizon=60, n_episodes=500, noise=0.5)
    costs = Conditions(horizon=60, n_episodes=500, noise=0.5, cost=4.0)
    estimated = Conditions(horizon=60, n_episodes=500, noise=0.5, propensity="estimated")
    clusters = Conditions(horizon=60, n_episodes=500, noise=0.5, cluster_size=5, shock=1.0)
    nights = Conditions(horizon=60, n_episodes=600, noise=0.5, cluster_size=20, shock=1.0)
    unknown = Conditions(horizon=60, n_episodes=600, noise=0.5, cluster_size=20, shock=1.0, clusters_known=False)
    return (
        GateCell(table="5 steps", conditions=some, logger=0.6, direction="equal", shift=0.3),
        GateCell(table="5 steps", conditions=some, logger=0.6, direction="equal", shift=0.3, alpha=0.01,
                 note="stated level 1 %", logs=2),
        GateCell(table="5 steps", conditions=some, logger=0.6, direction="looser", shift=0.3),
        GateCell(table="5 steps", conditions=some, logger=0.6, direction="worse", shift=0.05, margin=0.0),
        GateCell(table="5 steps", conditions=some, logger=0.6, direction="better", shift=0.3),
        GateCell(table="5 steps", conditions=some, logger=0.2, direction="worse", shift=0.5, note="poor overlap"),
        GateCell(table="5 steps", conditions=costs, logger=0.6, direction="equal", shift=0.3, note="costs"),
        GateCell(table="5 steps", conditions=costs, logger=0.6, direction="better", shift=0.3, note="costs"),
        GateCell(table="5 steps", conditions=costs, logger=0.2, direction="worse", shift=0.5,
                 note="costs, poor overlap"),
        GateCell(table="5 steps", conditions=estimated, logger=0.6, direction="equal", shift=0.3,
                 note="estimated propensities"),
        GateCell(table="5 steps", conditions=clusters, logger=0.6, direction="equal", shift=0.3,
                 note="clusters of 5 episodes share a shock"),
        GateCell(table="5 steps", conditions=nights, logger=0.6, direction="equal", shift=0.3,
                 note="30 nights share a shock each and are the clusters"),
        GateCell(table="5 steps", conditions=unknown, logger=0.6, direction="equal", shift=0.3,
                 note="30 nights share a shock each, which the contract does not say"),
    )  # fmt: skip


def _twenty_steps() -> tuple[GateCell, ...]:
    some = Conditions(horizon=200, n_episodes=500, noise=0.5)
    costs = Conditions(horizon=200, n_episodes=500, noise=0.5, cost=4.0)
    return (
        GateCell(table="20 steps", conditions=some, logger=0.6, direction="equal", shift=0.2),
        GateCell(table="20 steps", conditions=some, logger=0.6, direction="looser", shift=0.3),
        GateCell(table="20 steps", conditions=some, logger=0.6, direction="better", shift=0.3),
        GateCell(table="20 steps", conditions=costs, logger=0.6, direction="equal", shift=0.2, note="costs"),
        GateCell(table="20 steps", conditions=costs, logger=0.6, direction="better", shift=0.3, note="costs"),
    )


def _long() -> tuple[GateCell, ...]:
    hundred = Conditions(horizon=100, n_episodes=300, noise=0.5)
    day = Conditions(horizon=288, n_episodes=150, noise=0.5)
    return (
        GateCell(table="endless", conditions=hundred, logger=0.6, direction="equal", shift=0.2, logs=0.3),
        GateCell(table="endless", conditions=hundred, logger=0.6, direction="better", shift=0.2, logs=0.2),
        GateCell(table="endless", conditions=hundred, logger=0.6, direction="looser", shift=0.3, logs=0.3),
        GateCell(table="endless", conditions=day, logger=0.6, direction="equal", shift=0.2, logs=0.1),
        GateCell(table="endless", conditions=day, logger=0.6, direction="better", shift=0.2, logs=0.1),
        GateCell(table="endless", conditions=day, logger=0.6, direction="looser", shift=0.3, logs=0.1),
    )


def _gymnasium() -> tuple[GateCell, ...]:
    lake = Conditions(horizon=100, n_episodes=2_000)
    large_lake = Conditions(horizon=200, n_episodes=1_000)
    cliff, taxi = Conditions(horizon=200, n_episodes=500), Conditions(horizon=200, n_episodes=500)
    many_taxis = Conditions(horizon=200, n_episodes=1_000)
    return (
        GateCell(table="FrozenLake 4x4", conditions=lake, logger=0.5, direction="better", shift=0.4, power=0.8),
        GateCell(table="FrozenLake 4x4", conditions=lake, logger=0.5, direction="looser", shift=0.4),
        GateCell(
            table="FrozenLake 4x4",
            conditions=lake,
            logger=0.5,
            direction="looser",
            shift=0.4,
            alpha=0.01,
            note="stated level 1 %",
        ),
        GateCell(table="FrozenLake 4x4", conditions=lake, logger=0.5, direction="equal", shift=0.3, logs=0.5),
        GateCell(table="FrozenLake 8x8", conditions=large_lake, logger=0.5, direction="better", shift=0.4, logs=0.3),
        GateCell(table="FrozenLake 8x8", conditions=large_lake, logger=0.5, direction="looser", shift=0.2, logs=0.3),
        GateCell(table="CliffWalking", conditions=cliff, logger=0.3, direction="better", shift=2 / 3, power=0.8),
        GateCell(table="CliffWalking", conditions=cliff, logger=0.3, direction="looser", shift=1 / 7),
        GateCell(table="Taxi", conditions=taxi, logger=0.3, direction="better", shift=1 / 3, power=0.8),
        GateCell(table="Taxi", conditions=taxi, logger=0.3, direction="looser", shift=1 / 7),
        GateCell(table="Taxi", conditions=many_taxis, logger=0.5, direction="looser", shift=0.6, margin=0.0),
        GateCell(table="Taxi", conditions=many_taxis, logger=0.5, direction="looser", shift=0.6, logs=0.5),
    )


def _limits() -> tuple[GateCell, ...]:
    disaster = Conditions(horizon=1, n_episodes=400, noise=0.5, disaster=300.0)
    disasters = Conditions(horizon=60, n_episodes=500, noise=0.5, disaster=300.0, disaster_action=1)
    hidden = Conditions(horizon=80, n_episodes=500, noise=0.5)
    return (
        GateCell(table="one step", conditions=disaster, logger=1.0, direction="riskier", shift=0.3, limit=True,
                 note="a disaster in 1 of 1,000 times of one action"),
        GateCell(table="5 steps", conditions=disasters, logger=0.6, direction="riskier", shift=0.2, limit=True,
                 note="a disaster in 1 of 1,000 times of one action"),
        GateCell(table="hidden", conditions=hidden, logger=0.6, direction="equal", shift=0.3, limit=True,
                 note="a hidden state"),
        GateCell(table="hidden", conditions=hidden, logger=0.6, direction="looser", shift=0.4, limit=True,
                 note="a hidden state"),
    )  # fmt: skip


CELLS = _cells()

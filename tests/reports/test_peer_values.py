"""The estimators against what public libraries give on the same arrays, where the definitions are the same."""

from __future__ import annotations

import json

import pytest

from tests.benchmarks.estimators_work import GAMMA, OBP, SCOPE_RL, SHRINKAGE, SWITCH, drawn_log, tables
from tests.benchmarks.peer_values import HORIZON, VALUES

PINNED = json.loads(VALUES.read_text())
CASES = [(peer, name) for peer in PINNED for name in PINNED[peer]["values"]]


@pytest.mark.parametrize(("peer", "name"), CASES)
def test_estimator_equals_the_peer_s(peer: str, name: str) -> None:
    """SCOPE-RL 0.2.1 adds 1e-10 to what it normalizes by. OBP 0.5.7 has no horizon.

    Its Switch-DR and DRos take the threshold on the weight and the strength that ours are given here; ours choose
    them from the log. Their intervals are left out: SCOPE-RL's do not normalize anew inside a replicate, and its
    Hoeffding bound grows with the number of episodes (sqrt(log(2 / alpha) / 2 * n), times the observed maximum).
    """
    pinned, own = PINNED[peer], (SCOPE_RL if peer == "scope_rl" else OBP)[name]
    horizon, gamma = (HORIZON, GAMMA) if peer == "scope_rl" else (1, GAMMA)
    asked = {"horizon": horizon, "gamma": gamma, "switch": SWITCH, "shrinkage": SHRINKAGE}
    log = drawn_log(pinned["n_episodes"], horizon, spread=0.6)
    found = tables(log, (own,), asked)[own].value
    assert found == pytest.approx(pinned["values"][name], rel=1e-9), f"{peer} {pinned['version']}"

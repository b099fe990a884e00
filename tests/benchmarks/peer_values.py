"""Writes tests/reports/peer_values.json: what the peers' estimators give on two small logs, with their versions.

`python -m tests.benchmarks.peer_values` runs them; the tests read the file and need no peer.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tests.benchmarks.estimators_work import GAMMA, SHRINKAGE, SWITCH, drawn_log, write_log
from tests.benchmarks.peers import estimate_by

VALUES = Path(__file__).resolve().parents[1] / "reports" / "peer_values.json"
HORIZON = 6


def main() -> None:
    """Both peers, on `drawn_log(40, HORIZON)` and `drawn_log(200, 1)`."""
    asked = {"gamma": GAMMA, "switch": SWITCH, "shrinkage": SHRINKAGE}
    found = {}
    for peer, n_episodes, horizon in (("scope_rl", 40, HORIZON), ("obp", 200, 1)):
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log.npz"
            write_log(log, drawn_log(n_episodes, horizon, spread=0.6))
            estimates = estimate_by(peer, log, asked | {"horizon": horizon})
        found[peer] = {"version": estimates.version, "n_episodes": n_episodes, "values": estimates.values}
    VALUES.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

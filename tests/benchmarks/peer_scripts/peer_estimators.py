"""Estimators of SCOPE-RL and OBP on given arrays: run by the interpreter of the peers' environment.

    python peer_estimators.py LOG.npz RESULT.json '{"peer": "scope_rl", "horizon": 50, "gamma": 0.99, ...}'

LOG.npz: actions (T,) int, rewards (T,), behavior_probs (T,) of the logged action, probs (T, A) of the evaluation
policy, q (T, A); episodes are rows of `horizon` steps. RESULT.json: `values` and `intervals` by the peer's own names of
its estimators, `wall_s` and `cpu_s` that value and interval took in all, `peak_mb` that memory grew by.

Both packages import plotting, environments and learners on the way; only the modules with the estimators are loaded.
"""

import importlib.util
import json
import sys
import time
import types
from importlib.metadata import version
from pathlib import Path

import numpy as np


def bare_packages(*names):
    """Packages of these names without what their __init__ would import; their modules are found as ever."""
    for name in names:
        if "." in name:
            parent, _, leaf = name.rpartition(".")
            place = [f"{folder}/{leaf}" for folder in sys.modules[parent].__path__]
        else:
            place = list(importlib.util.find_spec(name).submodule_search_locations)
        package = types.ModuleType(name)
        package.__path__ = place
        sys.modules[name] = package


def scope_rl(log, asked):
    """The estimators by name, and the arguments that value and interval take."""
    bare_packages("scope_rl", "scope_rl.ope", "scope_rl.ope.discrete")
    from scope_rl.ope.discrete import basic_estimators as found

    arguments = {
        "step_per_trajectory": int(asked["horizon"]),
        "action": log["actions"],
        "reward": log["rewards"],
        "pscore": log["behavior_probs"],
        "evaluation_policy_action_dist": log["probs"],
        "state_action_value_prediction": log["q"],
        "gamma": asked["gamma"],
    }
    made = (
        found.TrajectoryWiseImportanceSampling(),
        found.PerDecisionImportanceSampling(),
        found.DoublyRobust(),
        found.SelfNormalizedTIS(),
        found.SelfNormalizedPDIS(),
        found.SelfNormalizedDR(),
        found.DirectMethod(),
    )
    return {estimator.estimator_name: estimator for estimator in made}, arguments


def obp(log, asked):
    """The same for logs of one step."""
    bare_packages("obp", "obp.ope")
    from obp.ope import estimators as found

    arguments = {
        "reward": log["rewards"],
        "action": log["actions"],
        "pscore": log["behavior_probs"],
        "action_dist": log["probs"][:, :, None],
        "estimated_rewards_by_reg_model": log["q"][:, :, None],
    }
    made = {
        "ipw": found.InverseProbabilityWeighting(),
        "snipw": found.SelfNormalizedInverseProbabilityWeighting(),
        "dr": found.DoublyRobust(),
        "switch-dr": found.SwitchDoublyRobust(lambda_=asked["switch"]),
        "dr-os": found.DoublyRobustWithShrinkage(lambda_=asked["shrinkage"]),
        "dm": found.DirectMethod(),
    }
    return made, arguments


def resident_mb(what):
    """Resident memory of this process, now ("VmRSS") or at its peak ("VmHWM"): Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def main(log_path, result_path, settings):
    asked = json.loads(settings)
    with np.load(log_path) as file:
        log = {name: file[name] for name in file.files}
    estimators, arguments = {"scope_rl": scope_rl, "obp": obp}[asked["peer"]](log, asked)
    wanted = asked.get("estimators") or list(estimators)
    values, intervals = {}, {}
    before = resident_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew, from what is resident now
    began = time.perf_counter(), time.process_time()
    for name in wanted:
        values[name] = float(estimators[name].estimate_policy_value(**arguments))
        if asked.get("n_replicates"):
            found = estimators[name].estimate_interval(
                **arguments, n_bootstrap_samples=int(asked["n_replicates"]), random_state=0
            )
            intervals[name] = [float(bound) for bound in found.values()][1:]
    ended = time.perf_counter(), time.process_time()
    peak = resident_mb("VmHWM")
    result = {
        "version": version(asked["peer"].replace("_", "-")),
        "values": values,
        "intervals": intervals,
        "wall_s": ended[0] - began[0],
        "cpu_s": ended[1] - began[1],
        "peak_mb": peak - before,
    }
    Path(result_path).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])

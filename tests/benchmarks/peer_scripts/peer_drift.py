"""Divergences of two windows by Evidently or NannyML: run by the interpreter of the drift peers' environment.

    python peer_drift.py REFERENCE.parquet LIVE.parquet RESULT.json evidently|nannyml

All columns are numeric. RESULT.json: `version`, `values` by statistic and column, and the seconds `read_s` that pandas
took to read the files and `wall_s` that the peer took from frames to values.
"""

import importlib.util
import json
import os
import sys
import time
import types
from importlib.metadata import version
from pathlib import Path

os.environ |= {"DO_NOT_TRACK": "1", "NML_DISABLE_USAGE_LOGGING": "1"}  # no calls home

import pandas as pd


def evidently(reference, live):
    """PSI and KL of every column, by the report that its manual shows."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    began = time.perf_counter()
    columns = list(reference.columns)
    definition = DataDefinition(numerical_columns=columns)
    sides = [Dataset.from_pandas(frame, data_definition=definition) for frame in (live, reference)]
    asked = [(method, column) for method in ("psi", "kl_div") for column in columns]
    report = Report([ValueDrift(column=column, method=method) for method, column in asked])
    found = report.run(*sides).dict()["metrics"]
    took = time.perf_counter() - began
    values = {"psi": {}, "kl_div": {}}
    for (method, column), metric in zip(asked, found, strict=True):
        values[method][column] = float(metric["value"])
    return values, took


def evidently_functions(reference, live):
    """The same by its two functions of a pair of columns, without data set and report."""
    from evidently.legacy.calculations.stattests import kl_div_stat_test, psi_stat_test
    from evidently.legacy.core import ColumnType

    began = time.perf_counter()
    values = {
        name: {
            column: float(test(reference[column], live[column], ColumnType.Numerical, 0.1).drift_score)
            for column in reference.columns
        }
        for name, test in (("psi", psi_stat_test), ("kl_div", kl_div_stat_test))
    }
    return values, time.perf_counter() - began


def nannyml(reference, live):
    """Jensen-Shannon, which it has in place of PSI and KL, with the live rows as one chunk."""
    for name in ("nannyml", "nannyml.drift"):  # not what their __init__ would import: learners, plots, clouds
        found = importlib.util.find_spec(name).submodule_search_locations
        package = types.ModuleType(name)
        package.__path__, package.__version__ = list(found), version("nannyml")
        sys.modules[name] = package
    from nannyml.drift.univariate import UnivariateDriftCalculator

    began = time.perf_counter()
    calculator = UnivariateDriftCalculator(
        column_names=list(reference.columns), continuous_methods=["jensen_shannon"], chunk_number=1
    )
    found = calculator.fit(reference).calculate(live).to_df()
    took = time.perf_counter() - began
    column_of = {column: found[(column, "jensen_shannon", "value")] for column in reference.columns}
    return {"jensen_shannon": {column: float(value.iloc[-1]) for column, value in column_of.items()}}, took


def main(reference, live, result, peer):
    """Reads, computes, writes."""
    began = time.perf_counter()
    frames = pd.read_parquet(reference), pd.read_parquet(live)
    read_s = time.perf_counter() - began
    compute = {"evidently": evidently, "evidently_functions": evidently_functions, "nannyml": nannyml}[peer]
    values, took = compute(*frames)
    name = peer.split("_")[0]
    said = {"version": f"{name} {version(name)}", "values": values, "wall_s": took, "read_s": read_s}
    Path(result).write_text(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datasets.simulators.service import ServiceParameters
from datasets.simulators.simulation import true_value
from datasets.simulators.threshold_rule import logging_policy
from datasets.simulators.workload import DAY_S, TraceError, Workload, draw_disturbance, nominal_factor, read_trace

TRACES = Path(__file__).parents[4] / "shared" / "data" / "traces"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "trace.csv"
    path.write_bytes(text.encode())
    return path


def test_rhythm_peaks_in_the_afternoon_and_rests_at_the_weekend():
    workload = Workload(daily_amplitude=0.4, peak_hour=15, weekend_factor=0.5)
    seconds = np.array([15 * 3600, 3 * 3600, 5 * DAY_S + 15 * 3600])
    np.testing.assert_allclose(nominal_factor(workload, seconds), [1.4, 0.6, 0.7])


def test_without_noise_and_bursts_only_the_traffic_factor_is_left():
    workload = Workload(noise_sd=0, burst_probability=0, traffic=1.6)
    factors = draw_disturbance(np.random.default_rng(1), workload, np.zeros((5, 3), dtype=np.int64))
    np.testing.assert_allclose(factors, 1.6)


def test_a_night_shock_is_shared_within_a_day_and_differs_between_days():
    workload = Workload(noise_sd=0, burst_probability=0, night_shock_sd=0.2)
    seconds = np.array([[0, 600], [3600, 4200], [DAY_S, DAY_S + 600]])
    factors = draw_disturbance(np.random.default_rng(1), workload, seconds)
    assert len(np.unique(factors[:2])) == 1
    assert factors[2, 0] != factors[0, 0]


def test_noise_is_stationary_from_the_first_step():
    workload = Workload(noise_sd=0.1, burst_probability=0)
    logs = np.log(draw_disturbance(np.random.default_rng(1), workload, np.zeros((20_000, 4), dtype=np.int64)))
    np.testing.assert_allclose(logs.std(axis=0), 0.1, rtol=0.03)


def test_rates_are_averaged_per_step_and_gaps_interpolated(tmp_path):
    path = write(
        tmp_path,
        "timestamp,value\n2026-01-05 00:00:00,1\n2026-01-05 00:05:00,3\n2026-01-05 00:20:00,6\n2026-01-05 00:30:00,8\n",
    )
    trace = read_trace(path, step_s=600)
    np.testing.assert_allclose(trace.rates * 8 / trace.rates[-1], [2, 4, 6, 8])
    assert trace.start_s == 0


def test_a_request_log_is_counted_per_step_without_its_cut_off_last_step(tmp_path):
    rows = ["00:00:00.1234567", "00:00:30", "00:02:10", "00:03:30", "00:03:31"]  # 2, 0, 1 per minute, then a part
    path = write(tmp_path, "\ufeffTIMESTAMP,ContextTokens\r\n" + "\r\n".join(f"2026-01-06 {row},7" for row in rows))
    trace = read_trace(path, step_s=60)
    np.testing.assert_allclose(trace.rates / trace.rates.max() * 2, [2, 0, 1])
    assert trace.start_s == DAY_S


def test_a_long_trace_is_cut_to_whole_days_so_that_repeating_keeps_the_rhythm(tmp_path):
    times = np.datetime64("2026-01-05T06:00:00") + np.arange(30) * np.timedelta64(3600, "s")
    text = "timestamp,value\n" + "".join(f"{time},{1 + time.astype(object).hour}\n" for time in times)
    trace = read_trace(write(tmp_path, text), step_s=3600)
    assert len(trace.rates) == 24
    hours = np.arange(24)
    factor = nominal_factor(Workload(), 3 * DAY_S + hours * 3600, trace)
    np.testing.assert_allclose(factor / factor[0], 1 + hours)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no timestamp column"),
        ("time,value\n1,2\n", "found: time, value"),
        ("timestamp,value\n", "no rows"),
        (
            "timestamp,value\n2026-01-05,1\nnonsense,2\n2026-01-05 00:10:00\n",
            "2 of 3 rows cannot be read, first line 3",
        ),
        ("timestamp,value\n2026-01-05,-1\n", "not negative"),
        ("timestamp,value\n2026-01-05,1\n", "at least two steps"),
    ],
)
def test_a_useless_trace_is_refused_with_the_reason(tmp_path, text, message):
    with pytest.raises(TraceError, match=message):
        read_trace(write(tmp_path, text), step_s=600)


def test_a_missing_trace_is_named(tmp_path):
    with pytest.raises(TraceError, match=r"nowhere\.csv cannot be read"):
        read_trace(tmp_path / "nowhere.csv", step_s=600)


@pytest.mark.skipif(not TRACES.is_dir(), reason=f"the recorded traces are not at {TRACES}")
@pytest.mark.parametrize(
    ("name", "n_steps"),
    [("elb_request_count_8c0756", 14 * 144), ("nyc_taxi", 30 * 7 * 144), ("AzureLLMInferenceTrace_conv", 5)],
)
def test_recorded_traces_drive_the_simulation(name, n_steps):
    trace = read_trace(TRACES / f"{name}.csv", step_s=600)
    assert len(trace.rates) == n_steps
    value = true_value(logging_policy(), ServiceParameters(), n_episodes=500, seed=1, gamma=0.9, trace=trace)
    assert -60 < value.value < -5

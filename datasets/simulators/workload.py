"""How many requests a service gets: a weekly rhythm or a recorded trace, with noise, bursts and shared shocks."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from datasets.errors import OfflineDqnError
from datasets.settings import Settings

FloatArray = NDArray[np.float64]

DAY_S = 86_400
WEEK_S = 7 * DAY_S
BURN_IN_STEPS = 24
TRACE_PEAK_QUANTILE = 0.95


class TraceError(OfflineDqnError):
    """A trace file that cannot be read as request rates."""


class Workload(Settings):
    """Size, rhythm and noise of the requests of a fleet of services."""

    median_rate: float = Field(default=420.0, gt=0)
    """Requests per second of the median service, averaged over a working day."""
    rate_spread: float = Field(default=0.2, ge=0)
    """Standard deviation of the logarithm of that rate between services (cut at two standard deviations)."""
    daily_amplitude: float = Field(default=0.35, ge=0, lt=1)
    """Swing of the daily rhythm around its mean, as a share of it."""
    peak_hour: float = Field(default=15.0, ge=0, lt=24)
    """Hour of the day (UTC) with the most requests."""
    weekend_factor: float = Field(default=0.75, gt=0)
    """Requests on Saturday and Sunday relative to a working day."""
    noise_sd: float = Field(default=0.08, ge=0)
    """Stationary standard deviation of the logarithm of the rate around its rhythm."""
    noise_correlation: float = Field(default=0.8, ge=0, lt=1)
    """Correlation of that noise from one step to the next."""
    burst_probability: float = Field(default=0.05, ge=0, le=1)
    """Chance per step that a burst begins."""
    burst_size: float = Field(default=0.2, ge=0)
    """Mean size of a burst as a share of the rate; sizes are uniform between half and one and a half times this."""
    burst_decay: float = Field(default=0.6, ge=0, lt=1)
    """Share of a burst that is left one step later."""
    night_shock_sd: float = Field(default=0.0, ge=0)
    """Standard deviation of the logarithm of a factor that all services share for one UTC day."""
    traffic: float = Field(default=1.0, gt=0)
    """Factor on every rate that nobody planned for: 1.6 is a sudden shift of the world."""


class Trace(NamedTuple):
    """A recorded request rate on a regular grid."""

    rates: FloatArray
    """(L,) relative rates, 1 at the trace's 95 % quantile; repeats from the start when used up."""
    start_s: int
    """Second of the week (Monday 00:00 is 0) of the first rate."""
    step_s: int
    """Seconds between two rates."""


def read_trace(path: Path, *, step_s: int) -> Trace:
    """A trace of request rates from a CSV file, brought to one rate per `step_s` seconds.

    Two layouts are read: `timestamp,value` (the value is a rate in any unit; several in one step are averaged, a step
    without any is interpolated linearly) and a request log with one row per request, whose first column is `TIMESTAMP`
    in either case and which has no `value` or `requests` column (rows are counted per step). Timestamps are naive UTC.
    A trace of a week or more is cut to whole weeks, one of a day or more to whole days, so that repeating it keeps the
    rhythm; a last step that the file covers only in part is dropped from a request log.

    Args:
        path: the CSV file.
        step_s: seconds per step of the simulation; must be positive.

    Raises:
        TraceError: if the file has no timestamp column, a row cannot be read (the first of them is named), or fewer
            than two steps are left.
        ValueError: if `step_s` is not positive.
    """
    if step_s <= 0:
        raise ValueError(f"step_s must be positive, found {step_s}.")
    times, values = _read_rows(path)
    order = np.argsort(times, kind="stable")
    times = times[order]
    bins = ((times - times[0]) // np.timedelta64(step_s, "s")).astype(np.int64)
    counts = np.bincount(bins).astype(np.float64)
    if values is None:
        rates = counts[:-1]
    else:
        known = np.flatnonzero(counts)
        means = np.bincount(bins, weights=values[order])[known] / counts[known]
        rates = np.interp(np.arange(len(counts)), known, means)
    for period_s in (WEEK_S, DAY_S):
        if len(rates) * step_s >= period_s and period_s % step_s == 0:
            period = period_s // step_s
            rates = rates[: len(rates) // period * period]
            break
    peak = float(np.quantile(rates, TRACE_PEAK_QUANTILE)) if len(rates) >= 2 else 0.0
    if peak <= 0:
        raise TraceError(
            f"{path} yields {len(rates)} steps of {step_s} s whose 95 % quantile is {peak:g}; at least two steps and "
            f"a positive quantile are needed. Use a longer trace or a shorter step."
        )
    monday = np.datetime64("1970-01-05T00:00:00", "s")
    start_s = int((times[0].astype("datetime64[s]") - monday).astype(np.int64)) % WEEK_S
    return Trace(rates / peak, start_s, step_s)


def nominal_factor(workload: Workload, seconds: NDArray[np.int64], trace: Trace | None = None) -> FloatArray:
    """The planned rate at each instant relative to the service's mean rate, before noise, bursts and shifts.

    Args:
        workload: the rhythm.
        seconds: any shape, seconds since a Monday 00:00 UTC.
        trace: takes the place of the rhythm; its 95 % quantile becomes the peak of the daily rhythm.

    Returns:
        Same shape as `seconds`, not negative.
    """
    if trace is not None:
        position = (seconds - trace.start_s) // trace.step_s % len(trace.rates)
        return trace.rates[position] * (1 + workload.daily_amplitude)
    angle = 2 * np.pi * (seconds / 3600 - workload.peak_hour) / 24
    weekend = seconds % WEEK_S >= 5 * DAY_S
    return np.asarray((1 + workload.daily_amplitude * np.cos(angle)) * np.where(weekend, workload.weekend_factor, 1.0))


def draw_disturbance(rng: np.random.Generator, workload: Workload, seconds: NDArray[np.int64]) -> FloatArray:
    """Noise, bursts, the shock that all services share on one day, and the traffic shift, as one factor per step.

    Args:
        rng: the only source of randomness.
        workload: sizes of the disturbances.
        seconds: (n, T) seconds since a Monday 00:00 UTC, one row per episode.

    Returns:
        (n, T) positive factors on the planned rate; bursts and noise are stationary from the first step on.
    """
    n_episodes, n_steps = seconds.shape
    days, day = np.unique(seconds // DAY_S, return_inverse=True)
    shocks = np.exp(workload.night_shock_sd * rng.standard_normal(len(days)))[day.reshape(seconds.shape)]
    n_drawn = BURN_IN_STEPS + n_steps
    normals = rng.standard_normal((n_drawn, n_episodes))
    begins = rng.random((n_drawn, n_episodes)) < workload.burst_probability
    sizes = workload.burst_size * rng.uniform(0.5, 1.5, (n_drawn, n_episodes))
    fresh_sd = workload.noise_sd * np.sqrt(1 - workload.noise_correlation**2)
    noise = workload.noise_sd * normals[0]
    burst = np.zeros(n_episodes)
    factors = np.empty((n_steps, n_episodes))
    for step in range(n_drawn):
        if step > 0:
            noise = workload.noise_correlation * noise + fresh_sd * normals[step]
        burst = workload.burst_decay * burst + begins[step] * sizes[step]
        if step >= BURN_IN_STEPS:
            factors[step - BURN_IN_STEPS] = np.exp(noise) * (1 + burst)
    return np.asarray(factors.T * shocks * workload.traffic)


def _read_rows(path: Path) -> tuple[NDArray[np.datetime64], FloatArray | None]:
    """(R,) timestamps and (R,) rates, or None for the rates of a request log."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path} cannot be read: {error}.") from error
    header = [name.strip().lower() for name in lines[0].split(",")] if lines else []
    if "timestamp" not in header:
        raise TraceError(
            f"{path} has no timestamp column (found: {', '.join(header) or 'nothing'}). A trace has the columns "
            f"timestamp and value, or one row per request with a timestamp."
        )
    time_column = header.index("timestamp")
    value_column = next((header.index(name) for name in ("value", "requests") if name in header), None)
    times, values, bad = [], [], []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        try:
            fields = line.split(",")
            time = _utc(fields[time_column].strip())
            value = 1.0 if value_column is None else float(fields[value_column])
        except (ValueError, IndexError):
            bad.append(number)
            continue
        if not np.isfinite(value) or value < 0:
            bad.append(number)
            continue
        times.append(time)
        values.append(value)
    if bad or not times:
        where = f"{len(bad)} of {len(lines) - 1} rows cannot be read, first line {bad[0]}" if bad else "it has no rows"
        raise TraceError(
            f"{path}: {where}. A row needs a timestamp such as 2014-04-10 00:04:00 and, where there is a value column, "
            f"a finite rate that is not negative."
        )
    return np.array(times), None if value_column is None else np.array(values)


def _utc(text: str) -> np.datetime64:
    """An ISO time, taken as UTC where it names no zone: NumPy alone would warn of one."""
    time = datetime.fromisoformat(text)
    return np.datetime64(time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time, "us")

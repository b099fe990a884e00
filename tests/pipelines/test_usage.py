"""What a stage took of the machine: measured, kept whatever happens to the stage, and priced."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from datasets.settings import SettingsError, build_settings
from pipelines.metrics.config import CostConfig
from pipelines.metrics.usage import StageUsage, Usage, UsageLog, together

NIGHT = "2024-05-01"


def of(log: UsageLog) -> list[StageUsage]:
    return log.of_night(NIGHT)


def test_a_stage_that_computes_takes_cpu_and_one_that_waits_does_not(tmp_path: Path) -> None:
    log = UsageLog(tmp_path)
    with log.stage("waits", lambda: NIGHT):
        time.sleep(0.3)
    with log.stage("computes", lambda: NIGHT):
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass

    waits, computes = of(log)
    assert waits.wall_s >= 0.3
    assert waits.cpu_s < 0.2 < 0.3 <= computes.cpu_s


def test_the_peak_is_the_stage_s_own_and_not_that_of_an_earlier_one(tmp_path: Path) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the kernel keeps no peak of its own for a stage here")
    log = UsageLog(tmp_path)
    with log.stage("large", lambda: NIGHT):
        held = bytearray(200_000_000)
        held[::4096] = b"x" * len(held[::4096])
        del held
    with log.stage("small", lambda: NIGHT):
        pass

    large, small = of(log)
    assert large.peak_bytes is not None
    assert small.peak_bytes is not None
    assert large.peak_bytes - small.peak_bytes > 150_000_000


def test_what_was_written_to_the_disk_is_counted_where_the_system_tells(tmp_path: Path) -> None:
    log = UsageLog(tmp_path)
    with log.stage("writes", lambda: NIGHT), (tmp_path / "file").open("wb") as file:
        file.write(b"x" * 5_000_000)

    (writes,) = of(log)
    assert writes.written_bytes is None or writes.written_bytes in (0, *range(4_000_000, 50_000_000))  # 0: in memory


def test_a_stage_that_fails_has_its_line_and_its_error_goes_on(tmp_path: Path) -> None:
    log = UsageLog(tmp_path)
    with pytest.raises(KeyError, match="cause"), log.stage("fails", lambda: NIGHT):
        raise KeyError("cause")

    assert [(line.stage, line.ended) for line in of(log)] == [("fails", "failed")]
    assert log.last("fails") is None  # no example of what such a stage takes


def test_cost_by_hand() -> None:
    used = Usage(wall_s=1800, cpu_s=7200, peak_bytes=4_000_000_000, read_bytes=None, written_bytes=2_000_000_000)
    prices = CostConfig(cpu_hour=0.05, memory_gb_hour=0.01, read_gb=9.0, written_gb=0.25)

    # 2 h of CPU, 4 GB for half an hour, nothing known to be read, 2 GB written.
    assert used.cost(prices) == pytest.approx(2 * 0.05 + 4 * 0.5 * 0.01 + 2 * 0.25)


def test_several_attempts_add_up_and_share_one_peak() -> None:
    one = StageUsage(1.0, 2.0, 100, None, 5, stage="train", night=NIGHT)
    two = StageUsage(3.0, 4.0, 50, 7, None, stage="train", night=NIGHT)

    assert together([one, two]) == Usage(4.0, 6.0, 100, 7, 5)


def test_a_month_is_that_of_the_clock(tmp_path: Path) -> None:
    log = UsageLog(tmp_path)
    with log.stage("ingest", lambda: NIGHT):
        pass

    assert len(log.of_month(datetime.now(UTC))) == 1
    assert log.of_month(datetime(2024, 5, 1, tzinfo=UTC)) == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"training_budget": 1.0}, "a budget wants a price, such as cpu_hour"),
        ({"cpu_hour": -1}, "cpu_hour"),
        ({"cpu_hours": 1}, "did you mean 'cpu_hour'?"),
    ],
)
def test_impossible_prices_are_refused(values: dict[str, float], said: str) -> None:
    with pytest.raises(SettingsError, match=said.replace("?", r"\?")):
        build_settings(CostConfig, values, "test")

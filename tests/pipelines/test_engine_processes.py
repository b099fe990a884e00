"""Pieces on real processes of Dask and of Ray; `make engines` takes whole nights there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from datasets import reading
from datasets.errors import OfflineDqnError
from pipelines.engine_config import EngineConfig
from pipelines.engines import spreading
from pipelines.metrics.usage import Meter
from pipelines.pieces import EngineError
from tests.datasets.builders import suite_says, tiny
from tests.datasets.mixed_logs import Nights, two_nights


def sum_above(weights: NDArray[np.float64], limit: float) -> tuple[float, int]:
    """Of weights too many to travel with every piece; and the process that added them up."""
    if limit < 0:
        raise OfflineDqnError(f"{limit} is no limit")
    burnt = sum(float(np.sqrt(weights).sum()) for _ in range(20))
    return float(weights[weights > limit].sum()) + 0.0 * burnt, os.getpid()


@pytest.fixture(scope="module", autouse=True)
def small_groups() -> Iterator[None]:
    """Small logs make several groups, and no suite looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "GROUP_BYTES", 1500)
        suite_says(patch, True)
        yield


@pytest.fixture(scope="module")
def read_here(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    """What two ingests of mixed logs make of which nothing is spread."""
    return two_nights(tmp_path_factory.mktemp("read") / "here", tiny())


@pytest.mark.parametrize("kind", ["dask", "ray"])
def test_processes_find_the_same_bits_and_their_work_is_counted(
    kind: Literal["dask", "ray"], tmp_path: Path, read_here: Nights
) -> None:
    pytest.importorskip("prefect_dask" if kind == "dask" else "prefect_ray")
    weights = np.random.default_rng(0).random(500_000)
    limits = [0.1, 0.5, 0.9]

    with spreading(EngineConfig(kind=kind, workers=1), tmp_path) as spread:
        meter = Meter()
        found = spread("limit", partial(sum_above, weights), limits)
        used = meter.read()
        lying = [path.stat().st_size for path in (tmp_path / ".engine").rglob("*") if path.is_file()]
        with pytest.raises(OfflineDqnError, match=r"^-1 is no limit$"):
            spread("limit", partial(sum_above, weights), [0.1, -1])
        read = two_nights(tmp_path / "read", tiny(), spread)

    assert min(read.n_groups, default=0) >= 2, f"groups that were spread, by ingest: {read.n_groups}"
    assert (read.told, read.tables, read.files) == (read_here.told, read_here.tables, read_here.files)
    assert [value for value, _ in found] == [sum_above(weights, limit)[0] for limit in limits]
    assert os.getpid() not in {process for _, process in found}
    assert used.cpu_s > 0.05
    assert max(lying) > 4_000_000
    assert not list((tmp_path / ".engine").iterdir())


def test_a_scheduler_that_does_not_answer_is_named_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dask_workers = pytest.importorskip("pipelines.dask_workers")
    monkeypatch.setattr(dask_workers, "_CONNECT_S", 1)
    said = r"No Dask scheduler answers at \[engine\] address = tcp://127\.0\.0\.1:9.*`dask scheduler`"
    config = EngineConfig(kind="dask", address="tcp://127.0.0.1:9")
    with spreading(config, tmp_path) as spread, pytest.raises(EngineError, match=said):
        spread("limit", partial(sum_above, np.ones(3)), [0.1, 0.5])


@pytest.mark.parametrize(
    "kind", ["NodeDiedError", "LocalRayletDiedError", "ObjectLostError", "OwnerDiedError", "WorkerCrashedError"]
)
def test_ray_workers_that_are_lost_in_whatever_way_are_told_with_the_remedy(kind: str) -> None:
    ray_workers = pytest.importorskip("pipelines.ray_workers")
    lost = getattr(ray_workers.ray.exceptions, kind)
    error = lost("00", None, "") if kind in ("ObjectLostError", "OwnerDiedError") else lost("the node has gone")

    def result() -> None:
        raise error

    workers = ray_workers.RayWorkers.__new__(ray_workers.RayWorkers)  # one that has been started, and then lost
    said = rf"^The Ray workers ended while they were at limit 1 of 2 \({kind}\).*`offline-dqn nightly` goes on"
    with pytest.raises(EngineError, match=said):
        workers._waiting(result, "limit 1 of 2")()


def end_the_process(item: int) -> None:
    os._exit(item)


def test_workers_that_all_end_are_an_error_and_no_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dask_workers = pytest.importorskip("pipelines.dask_workers")
    monkeypatch.setattr(dask_workers, "_LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(dask_workers, "_WITHOUT_WORKERS_S", 0.5)
    said = r"^The Dask workers ended while they were at limit 1 of 2 .*lower \[engine\] workers"
    config = EngineConfig(kind="dask", workers=1)
    with spreading(config, tmp_path) as spread, pytest.raises(EngineError, match=said):
        spread("limit", end_the_process, [1, 2])

"""Engines: the same bits wherever pieces are worked out, and errors that name what a worker lacks."""

from __future__ import annotations

import functools
import gzip
import json
import os
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets import reading
from datasets.errors import OfflineDqnError
from datasets.settings import SettingsError, build_settings
from datasets.spreading import NotSharedError, Spread, one_by_one
from pipelines import engines, readings, stages
from pipelines.engine_config import EngineConfig
from pipelines.engines import spreading
from pipelines.pieces import EngineError, Parcels, Piece, pack, refuse_others, work_out_packed
from pipelines.workspace import Workspace, open_workspace
from reports.records import evaluation_to_json
from tests.datasets.builders import suite_says

TWO_THREADS = EngineConfig(kind="threads", workers=2)


def sleep_backwards(item: int) -> int:
    """The later the piece, the sooner it ends."""
    time.sleep(0.02 * (5 - item))
    return item * item


def fail_at(number: int, item: int) -> int:
    if item >= number:
        raise OfflineDqnError(f"piece {item} cannot be worked out")
    return item


def test_what_pieces_found_comes_back_in_their_order() -> None:
    with spreading(TWO_THREADS, Path()) as spread:
        assert spread("piece", sleep_backwards, range(5)) == [0, 1, 4, 9, 16]


def test_the_first_piece_that_fails_is_told_of_as_it_failed() -> None:
    with (
        spreading(TWO_THREADS, Path()) as spread,
        pytest.raises(OfflineDqnError, match=r"^piece 2 cannot be worked out$"),
    ):
        spread("piece", functools.partial(fail_at, 2), range(5))


def test_pieces_compute_with_one_thread_and_leave_the_process_its_own_number() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with spreading(TWO_THREADS, Path()) as spread:
            found = spread("piece", lambda _: (torch.get_num_threads(), threading.current_thread().name), range(4))
        assert {n for n, _ in found} == {1}
        assert all(name.startswith("engine") for _, name in found)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_stages_of_a_night_share_its_workers() -> None:
    with spreading(TWO_THREADS, Path()) as outer, spreading(EngineConfig(kind="threads", workers=4), Path()) as inner:
        assert inner is outer
    with spreading(EngineConfig(), Path()) as alone:
        assert alone is one_by_one


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "threads", "address": "tcp://10.0.0.5:8786"}, 'an address is for kind = "dask" or "ray"'),
        ({"kind": "dask", "address": "10.0.0.5:8786"}, "address wants the form tcp://HOST:PORT or tls://HOST:PORT"),
        ({"kind": "ray", "address": "ray://10.0.0.5"}, "address wants the form ray://HOST:PORT"),
        ({"kind": "dask", "address": "tcp://me:secret@10.0.0.5:8786"}, "a user or a password"),
        ({"kind": "spark"}, "kind: Input should be 'threads', 'dask' or 'ray'"),
        ({"workers": 0}, "workers: Input should be greater than or equal to 1"),
    ],
)
def test_an_engine_that_cannot_be_is_refused_when_the_settings_are_read(values: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        build_settings(EngineConfig, values, "offline_dqn.toml")
    assert said in str(refused.value)


def test_an_engine_whose_extra_is_missing_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pipelines.dask_workers", None)
    with (
        spreading(EngineConfig(kind="dask"), Path()) as spread,
        pytest.raises(EngineError, match="needs the extra of that name"),
    ):
        spread("piece", sleep_backwards, range(2))


def test_a_mapped_array_travels_as_the_path_of_its_file(tmp_path: Path) -> None:
    np.save(tmp_path / "rewards.npy", np.arange(100_000.0))
    mapped = np.load(tmp_path / "rewards.npy", mmap_mode="r")

    function, item = pack(np.sum), pack(mapped)
    assert len(item) < 2_000  # of 800,000
    assert work_out_packed(function, item, "piece 1 of 1").found == 4_999_950_000.0
    assert work_out_packed(pack(np.array), pack(mapped[7:9]), "piece 1 of 1").found.tolist() == [7.0, 8.0]

    np.save(tmp_path / "rewards.npy", np.arange(10.0))
    with pytest.raises(NotSharedError, match=r"rewards\.npy is another file on .*Mount the workspace's folder itself"):
        work_out_packed(function, item, "piece 1 of 1")
    (tmp_path / "rewards.npy").unlink()
    with pytest.raises(NotSharedError, match=r"cannot read .*rewards\.npy: .*mount its folder under the same path"):
        work_out_packed(function, item, "piece 1 of 1")


def test_parcels_of_killed_processes_of_this_host_go_and_those_of_other_hosts_stay(tmp_path: Path) -> None:
    host = os.uname().nodename
    gone, other, alive = (
        tmp_path / name for name in (f"{host}-99999999", f"{host}-b-99999999", f"{host}-{os.getppid()}")
    )
    for folder in (gone, other, alive):
        folder.mkdir()
    with ExitStack() as stack:
        list(Parcels(tmp_path, stack).packed([Piece("large 1 of 1", functools.partial(len, b"x" * 10_000_000), None)]))
        assert [folder.exists() for folder in (gone, other, alive)] == [False, True, True]


def test_workers_that_would_find_other_numbers_are_refused() -> None:
    here = {"numpy": "2.4", "source": "abc", "processor": "SkylakeX AVX512"}
    refuse_others({"tcp://10.0.0.6:1": dict(here)}, here, "start workers")
    with pytest.raises(EngineError, match=r"worker tcp://10\.0\.0\.7:1 .* it has source abd instead of abc, processor"):
        refuse_others(
            {"tcp://10.0.0.7:1": {**here, "source": "abd", "processor": "Haswell AVX2"}}, here, "start workers"
        )
    with pytest.raises(EngineError, match="a cluster without workers: start workers"):
        refuse_others({}, here, "start workers")


def as_elsewhere(what: str, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Every piece as another process would get it and give it back: in bytes."""
    packed, items_packed = pack(function), [pack(item) for item in items]
    found = [pack(work_out_packed(packed, item, what).found) for item in items_packed]
    return [pickle.loads(each) for each in found]


def judged(workspace: Workspace, config: EngineConfig, spread: Spread | None = None) -> str:
    """Every bit of an evaluation, as text."""
    with spreading(config, Path()) as configured:
        spread = spread or configured
        evaluation, episodes = readings.set_up(workspace, 1).judge(None, spread=spread)
    return json.dumps(evaluation_to_json(evaluation)) + episodes.hex()


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pieces that threads are given."""
    names: list[str] = []
    submit = engines._Threads.submit

    def watched(self: Any, pieces: Any) -> Any:
        names.extend(piece.name for piece in pieces)
        return submit(self, pieces)

    monkeypatch.setattr(engines._Threads, "submit", watched)
    return names


def test_an_evaluation_is_the_same_to_the_bit_with_its_folds_apart(workspace: Workspace, begun: list[str]) -> None:
    alone = judged(workspace, EngineConfig())
    assert judged(workspace, TWO_THREADS) == alone
    assert judged(workspace, EngineConfig(), as_elsewhere) == alone
    assert begun == ["fold 1 of 2", "fold 2 of 2"]


def test_several_packed_logs_are_read_by_the_engine_and_one_is_not(
    fresh: Workspace, begun: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    suite_says(monkeypatch, True)
    monkeypatch.setattr(stages, "batch_docs", lambda *_: None)
    monkeypatch.setattr(reading, "GROUP_BYTES", 1)
    stages.simulate(fresh, n_episodes=12)
    (log,) = fresh.logs_path.iterdir()
    lines = log.read_text().splitlines(keepends=True)
    for part in range(3):
        (log.parent / f"{part}.jsonl.gz").write_bytes(gzip.compress("".join(lines[part::4]).encode()))
    log.write_text("".join(lines[3::4]))  # plain: read here
    settings = fresh.root / "offline_dqn.toml"
    settings.write_text(f"{settings.read_text()}\n[engine]\nworkers = 2\n")

    report = stages.ingest(open_workspace(fresh.root))
    assert begun == ["group 1 of 3", "group 2 of 3", "group 3 of 3"]
    assert report.batch is not None
    assert report.batch.counts.n_lake == len(lines)

    (log.parent / "3.jsonl.gz").write_bytes(gzip.compress("".join(lines[:10]).encode()))
    again = stages.ingest(open_workspace(fresh.root)).batch
    assert again is not None
    assert again.counts.n_duplicates == 10
    assert len(begun) == 3

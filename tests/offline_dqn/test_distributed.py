"""Two processes give what one gives, to rounding, and the same bits as each other."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets.replay import TRAIN
from offline_dqn.distributed import ALONE, DistributedError, Ranks, joined_ranks
from offline_dqn.learner import fit
from offline_dqn.streaming import training_source
from offline_dqn.train_config import TrainConfig
from offline_dqn.trained import TrainedQ
from offline_dqn.training_data import Batch
from tests.offline_dqn.logs import numbered_replay

QUICK = TrainConfig(
    n_updates=30, batch_size=32, hidden=(16, 16), log_every=10, checkpoint_every=10, target_sync_every=7,
    learning_rate=1e-3, device="cpu",
)  # fmt: skip
CONFIGS = {
    "learners": QUICK,
    "priorities, gap, ensemble": QUICK.model_copy(
        update={"priority_exponent": 0.6, "target_gaps": (0.5,), "gap_learning_rate": 0.1, "n_members": 2}
    ),
    "quantiles, huge gradients": QUICK.model_copy(
        update={"n_quantiles": 4, "max_gradient_norm": 0.01, "dueling": True}
    ),
    "streamed": QUICK.model_copy(update={"largest_in_memory_mb": 1, "n_step": 3}),
}


class KilledError(Exception):
    """What kills the first training."""


def trained(name: str, ranks: Ranks = ALONE, *, cut_off_at: int | None = None, **options: Any) -> TrainedQ:
    replay, config = numbered_replay(1_500), CONFIGS[name]
    source = training_source(replay, replay.split == TRAIN, config)
    draw = source.draw

    def drawn(progress: float) -> Batch:
        if cut_off_at is not None and progress * config.n_updates > cut_off_at - 0.5:
            raise KilledError
        return draw(progress)

    source.draw = drawn  # type: ignore[method-assign]  # the batch that never comes
    return fit(source, config, ranks=ranks, **options)


def weights_of(trained: TrainedQ) -> dict[str, Any]:
    return {f"{n.name}@{n.step}/{k}": w for n in trained.networks for k, w in n.weights.items()}


def work(folder: Path) -> None:
    """What each of the processes does."""
    torch.set_num_threads(1)
    with joined_ranks() as ranks:
        for name in CONFIGS:
            found = trained(name, ranks)
            np.savez(folder / f"{name}.{ranks.rank}.npz", **weights_of(found))
            (folder / f"{name}.{ranks.rank}.json").write_text(json.dumps(found.history))
        with contextlib.suppress(KilledError):
            trained("learners", ranks, cut_off_at=25, checkpoint_dir=folder / "kept")
        found = trained("learners", ranks, checkpoint_dir=folder / "kept")
        np.savez(folder / f"resumed.{ranks.rank}.npz", **weights_of(found))
        said = []
        for n, fingerprint, step in ((33, "same", 0), (32, f"data{ranks.rank}", 0), (32, "same", ranks.rank)):
            try:
                ranks.check(n, fingerprint, step)
                said.append("")
            except DistributedError as error:
                said.append(str(error))
        (folder / f"said.{ranks.rank}.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", __name__, str(made)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    return made


@pytest.mark.parametrize("name", CONFIGS)
def test_two_processes_end_as_one_does_to_rounding_and_alike(folder: Path, name: str) -> None:
    alone = trained(name)
    first, second = (np.load(folder / f"{name}.{rank}.npz") for rank in range(2))
    wanted = weights_of(alone)

    assert sorted(first.files) == sorted(wanted)
    moved = 0.0
    for key, weights in wanted.items():
        assert first[key].tobytes() == second[key].tobytes(), key
        if key.startswith("bc@") and "/value." in key:
            continue  # a softmax does not see the state's value: its gradient is rounding alone, which Adam enlarges
        np.testing.assert_allclose(first[key], weights, atol=2e-5, err_msg=key)
        moved = max(moved, float(np.abs(weights).max()))
    assert moved > 0.1
    history = json.loads((folder / f"{name}.0.json").read_text())
    for found, metrics in zip(history, alone.history, strict=True):
        assert found.keys() == metrics.keys()
        for key in found.keys() - {"updates_per_s"}:
            assert found[key] == pytest.approx(metrics[key], rel=1e-3, abs=1e-4), key


def test_both_resumed_from_the_checkpoint_of_the_first_end_in_the_same_bits(folder: Path) -> None:
    undisturbed = np.load(folder / "learners.0.npz")
    for rank in range(2):
        resumed = np.load(folder / f"resumed.{rank}.npz")
        assert all(resumed[key].tobytes() == undisturbed[key].tobytes() for key in undisturbed.files)


def test_what_cannot_train_together_is_refused(folder: Path) -> None:
    first, second = (json.loads((folder / f"said.{rank}.json").read_text()) for rank in range(2))
    for said in (first, second):
        assert said[0] == (
            "train.batch_size = 33 cannot be divided among 2 processes; make it a multiple of 2, such as 34."
        )
    assert first[1:] == ["", ""]
    assert second[1].startswith("process 1 has other data, settings or another version of torch than process 0.")
    assert second[2].startswith(
        "process 1 would go on from update 1, process 0 from 0. The workspace must be one folder"
    )


def test_a_process_that_torchrun_did_not_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(DistributedError, match="not started by torchrun"), joined_ranks():
        pass


if __name__ == "__main__":
    work(Path(sys.argv[1]))
    os._exit(0)  # as the command does: threads of a process group may abort an interpreter that is taken down

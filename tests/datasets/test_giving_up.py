"""Files that the disk has altered and nobody has a copy of: given up by a person, each row of them accounted for."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from datasets.erasure import erase_subject, finish_erasure, named_subject
from datasets.giving_up import GivenUp, give_up_altered
from datasets.journal import AlteredFilesError, LakeError
from tests.datasets.builders import ask, change_bytes, counts_of, lake_at, step_keys, take_in, tiny
from tests.datasets.test_rewriting import two_batches

pytestmark = pytest.mark.usefixtures("quick_suite")

AT = datetime(2024, 6, 1, tzinfo=UTC)

UNEXPLAINED = """SELECT batch_id, b.n_lake - count(s.step) - coalesce(any_value(r.n), 0) FROM
(SELECT * FROM {batches} QUALIFY row_number() OVER (PARTITION BY batch_id ORDER BY commit_number DESC) = 1) b
LEFT JOIN {steps} s USING (batch_id)
LEFT JOIN (SELECT batch_id, sum(n_rows) AS n FROM {removals} WHERE "table" = 'steps' GROUP BY ALL) r USING (batch_id)
GROUP BY batch_id, b.n_lake ORDER BY ALL"""


@pytest.mark.parametrize("how", ["other values", "cut off", "gone"])
def test_an_erasure_that_meets_an_altered_file_ends_once_it_is_given_up(tmp_path: Path, how: str) -> None:
    lake = two_batches(tmp_path)
    before = step_keys(lake)
    file = change_bytes(lake)
    ((batch, episode),) = ask(lake, f"SELECT DISTINCT batch_id, min(episode_id) FROM '{file}' GROUP BY ALL")
    subject = named_subject(tiny(), None, episode=episode, named=None)
    with pytest.raises(AlteredFilesError, match="`offline-dqn lake give-up --note WHY` takes them out of the lake"):
        erase_subject(lake, subject, None, tmp_path / "snapshots", at=AT)
    if how == "cut off":
        file.write_bytes(file.read_bytes()[:100])
    elif how == "gone":
        file.unlink()

    would = give_up_altered(lake, by="Ada", note="", at=AT, dry_run=True)
    done = give_up_altered(lake, by="Ada", note="the disk is dead", at=AT)

    assert would == done
    n = done.n_rows["steps"]
    assert done == GivenUp((file.relative_to(lake.root).as_posix(),), {"steps": n}, (batch,))
    assert (n > 0, len(step_keys(lake))) == (True, len(before) - n)
    reason = "altered, and given up by Ada: the disk is dead"
    assert ask(lake, 'SELECT "table", batch_id, n_rows, reason FROM {removals}') == [("steps", batch, n, reason)]
    assert [unexplained for _, unexplained in ask(lake, UNEXPLAINED)] == [0, 0]
    assert finish_erasure(lake, tmp_path / "snapshots")
    assert episode not in {name for name, _ in step_keys(lake)}
    assert give_up_altered(lake, by="Ada", note="again", at=AT) == GivenUp((), {}, ())


def test_a_log_that_is_brought_again_fills_the_gap(tmp_path: Path) -> None:
    lake = two_batches(tmp_path)
    change_bytes(lake)
    n = give_up_altered(lake, by="Ada", note="the disk is dead", at=AT).n_rows["steps"]

    again = tmp_path / "logs" / "steps" / "again.jsonl"
    again.parent.mkdir(parents=True, exist_ok=True)
    # Bytes that begin as a known file does are not read again, so a line stands in front. Whose rows were altered hangs
    # on the names of the batches, so it is both.
    again.write_bytes(b"\n" + (tmp_path / "a.jsonl").read_bytes() + (tmp_path / "b.jsonl").read_bytes())
    assert counts_of(take_in(lake, again))["lake"] == n


def test_what_may_not_be_given_up_is_named(tmp_path: Path) -> None:
    lake = two_batches(tmp_path)
    versions = lake.versions()
    with pytest.raises(LakeError, match="why is there no good copy"):
        give_up_altered(lake, by="Ada", note=" ", at=AT)
    change_bytes(lake, "batches", values="n_lake + 1 AS n_lake")
    change_bytes(lake)
    with pytest.raises(LakeError, match=r"lake.batches.*\.parquet is altered, which is no file of rows"):
        give_up_altered(lake, by="Ada", note="the disk is dead", at=AT)
    assert lake.versions() == versions
    assert lake_at(tmp_path).files("steps") == lake.files("steps")

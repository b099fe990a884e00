"""`drift compare`: any two sets of files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from datasets.duck import duck
from datasets.freezing import read_episodes
from drift.comparison import column_bins, divergences
from drift.config import DriftConfig
from drift.row_comparison import compare_rows
from drift.windows import DriftColumn, DriftWindow, scalar_columns, window_from_replay
from pipelines import comparing, stages
from pipelines.cli import app
from pipelines.comparing import files_relation, pair_of
from pipelines.workspace import Workspace
from tests.drift.worlds import window_of_nights
from tests.pipelines.conftest import Run


def table(n: int, shift: float) -> pa.Table:
    rng = np.random.default_rng(n)
    busy, queue = rng.random(n) < 0.3 + shift / 4, np.maximum(rng.standard_normal(n) + shift, 0.0)
    vectors = rng.standard_normal((n, 2)) * (1.0 + shift)
    return pa.table(
        {
            "request": [f"r-{shift}-{i}" for i in range(n)],
            "queue": pa.array(queue, mask=rng.random(n) < 0.1),
            "busy": busy,
            "zone": rng.choice(["a", "b", "new"] if shift else ["a", "b"], n),
            "load": list(vectors),
            "replicas": rng.integers(1, 9, n),
            "at": pa.array(np.arange(n), pa.timestamp("s")),
            "state": [{"p95": float(value), "deep": {"hour": int(value) % 24}} for value in queue],
        }
    )


def asked(*arguments: str) -> tuple[int, str, str]:
    answer = CliRunner().invoke(app, ["drift", "compare", *arguments])
    return answer.exit_code, answer.stdout, answer.stderr


def test_parquet_files_give_the_numbers_that_arrays_give(tmp_path: Path) -> None:
    sides = table(3_000, 0.0), table(2_000, 0.5)
    pq.write_table(sides[0], tmp_path / "reference.parquet", row_group_size=700)
    (tmp_path / "live").mkdir()
    pq.write_table(sides[1].slice(0, 900), tmp_path / "live" / "1.parquet")
    pq.write_table(sides[1].slice(900), tmp_path / "live" / "2.parquet")

    code, out, _ = asked(str(tmp_path / "reference.parquet"), str(tmp_path / "live" / "*.parquet"), "--json")

    assert code == 0
    found = json.loads(out)
    assert (found["reference_rows"], found["live_rows"]) == (3_000, 2_000)
    assert found["left_out"] == {"at": "timestamp: time always moves"}
    columns = {column["name"]: column for column in found["columns"]}
    assert columns["request"]["reason"].startswith("not compared: no label holds more than 0.1 %")
    before, now = (_columns(side) for side in sides)
    assert columns.keys() - {"request"} == before.keys()
    for name, column in before.items():
        bins = column_bins(column, n_bins=10)
        counts = bins.counts(column)
        wanted = divergences(column, now[name], bins, counts / counts.sum(), None, floor=DriftConfig().floor)
        for number in ("psi", "kl", "kl_reverse", "js", "wasserstein", "live_missing_share", "unseen_share"):
            assert columns[name][number] == pytest.approx(wanted[number], abs=1e-12), (name, number)
        assert columns[name]["bins"] == list(wanted["bins"])


def _columns(side: pa.Table) -> dict[str, DriftColumn]:
    """The same columns without DuckDB."""
    states = side["state"].to_pylist()
    zones = side["zone"].combine_chunks().dictionary_encode()
    load = DriftColumn("vector", np.array(side["load"].to_pylist()))
    return {
        "queue": DriftColumn("numeric", side["queue"].to_numpy()),
        "busy": DriftColumn("boolean", side["busy"].to_numpy().astype(np.float64)),
        "zone": DriftColumn("categorical", zones.indices.to_numpy(), tuple(zones.dictionary.to_pylist())),
        **scalar_columns("load", load),
        "replicas": DriftColumn("numeric", side["replicas"].to_numpy().astype(np.float64)),
        "state.p95": DriftColumn("numeric", np.array([state["p95"] for state in states])),
        "state.deep.hour": DriftColumn("numeric", np.array([float(state["deep"]["hour"]) for state in states])),
    }


def test_csv_and_json_lines_are_read_too(tmp_path: Path) -> None:
    pq.write_table(table(400, 0.0).select(["queue", "zone", "busy"]), tmp_path / "a.parquet")
    for name, form in (("a.csv", "csv"), ("a.jsonl", "json"), ("a.jsonl.gz", "json, COMPRESSION gzip")):
        with duck() as connection:
            connection.execute(f"COPY (FROM '{tmp_path}/a.parquet') TO '{tmp_path}/{name}' (FORMAT {form})")
        code, out, err = asked(str(tmp_path / "a.parquet"), str(tmp_path / name), "--json")
        assert code == 0, err
        assert {column["name"]: column["psi"] for column in json.loads(out)["columns"]} == {
            "queue": 0.0, "zone": 0.0, "busy": 0.0,
        }  # fmt: skip


def test_the_table_says_why_there_is_no_verdict_and_gives_one_where_rows_are_independent(tmp_path: Path) -> None:
    for name, shift in (("a", 0.0), ("b", 0.5)):
        pq.write_table(table(2_000, shift), tmp_path / f"{name}.parquet")
    files = [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]

    code, out, _ = asked(*files)
    assert code == 0
    assert "none: without nights and clusters nothing tells how far chance goes" in out
    assert "threshold" not in out

    code, out, err = asked(*files, "--independent-rows", "--rate", "0.05", "--leave-out", "load")
    assert code == 0
    assert "5 of 6 columns drifted: zone, " in out
    assert "0.05 of equal pairs would show any drift" in out
    assert "load" not in out
    assert "left out, timestamp: time always moves: at" in err


def test_a_long_reference_is_counted_whole_though_bins_are_cut_on_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drift.row_comparison.MAX_VALUES", 1_000)
    monkeypatch.setattr(comparing, "BLOCK_ROWS", 10_000)
    n = 150_000
    values = np.random.default_rng(0).standard_normal(n)
    pq.write_table(pa.table({"x": values}), tmp_path / "a.parquet")
    found = []
    for _ in range(2):
        with duck() as connection:
            side = files_relation(connection, str(tmp_path / "a.parquet"))
            pair = pair_of(connection, side, side)
            found.append(compare_rows(pair.rows(0), pair.rows(1), n_bins=10, floor=1e-4))
    assert found[0] == found[1]
    column = found[0].columns[0]
    assert (found[0].reference_rows, column.psi) == (n, 0.0)
    assert found[0].reference_sample <= 32_768
    assert column.reference_probs[:-1] == pytest.approx([0.1] * 10, abs=0.012)  # five standard deviations of a sample


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ({"x": [1.0] * 20}, {"y": [1.0] * 20}, "have no column in common that can be compared: the first has x;"),
        ({"x": [1.0] * 20}, {"x": ["a"] * 20}, "x: numeric in {folder}/a.parquet, categorical in {folder}/b.parquet"),
        ({"x": [[1.0]] * 20}, {"x": [[1.0, 2.0]] * 20}, "x: its lists hold 1 or 2 values; all must be equally long"),
        ({"x": [1.0] * 20}, {"x": [1.0] * 3}, "The live side holds 3 rows for 10 bins"),
        ({"x": [float("inf")] * 20}, {"x": [1.0] * 20}, "x: 20 of 20 rows of the reference"),
    ],
)
def test_what_cannot_be_compared_says_why(
    before: dict[str, list[object]], now: dict[str, list[object]], message: str, tmp_path: Path
) -> None:
    for name, columns in (("a", before), ("b", now)):
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    code, out, err = asked(str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet"))
    assert (code, out) == (1, "")
    assert message.format(folder=tmp_path) in err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.parquet", None, "gone.parquet cannot be read: IO Error: No files found"),
        ("torn.parquet", "nothing of the kind", "torn.parquet cannot be read: "),
        ("table.xls", "", "what kind of file is it? It ends in none of .parquet, .csv"),
        ("late.csv", "x,y\n" + "1,1\n" * 30_000 + "one,1\n", "late.csv cannot be read: Conversion Error: CSV Error on"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name: str, content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    code, _, err = asked(str(tmp_path / name), str(tmp_path / name))
    assert code == 1
    assert message in err
    assert "Traceback" not in err


def test_a_column_without_any_value_takes_the_kind_of_the_other_side(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n" + "1.5,\n" * 20)
    (tmp_path / "b.csv").write_text("x,y\n" + "1.5,2.5\n" * 20)
    code, out, _ = asked(str(tmp_path / "a.csv"), str(tmp_path / "b.csv"), "--json")
    assert code == 0
    column = json.loads(out)["columns"][1]
    assert (column["kind"], column["reason"]) == ("numeric", "all missing on the reference")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--rate", "1.5"], 2, "--rate is a share between 0 and 1; found 1.5"),
        (["--leave-out", "nope"], 1, "Neither side has a column nope that could be left out"),
        (["--bins", "1"], 2, "--bins"),
    ],
)
def test_wrong_options_are_refused(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1.0] * 20}), tmp_path / "a.parquet")
    answer = asked(*[str(tmp_path / "a.parquet")] * 2, *arguments)
    assert answer[0] == code
    assert message in answer[2]


def write_window(window: DriftWindow, path: Path) -> None:
    """Rows with the date and the episode of each."""
    numbers = {n: c.values for n, c in window.columns.items() if c.kind in ("numeric", "boolean")}
    nights = window.nights[window.episode_of_row]
    episodes = [f"{night}-{episode}" for night, episode in zip(nights, window.episode_of_row, strict=True)]
    pq.write_table(pa.table({**numbers, "date": nights, "episode": episodes}), path)


@pytest.mark.parametrize(("n_nights", "unit"), [(16, "16 reference nights"), (8, "320 reference clusters, optimistic")])
def test_nights_and_clusters_of_files_tell_how_far_chance_goes(n_nights: int, unit: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    windows = {
        "before": window_of_nights(rng, n_nights=n_nights, episodes_per_night=40),
        "same": window_of_nights(rng, n_nights=1, episodes_per_night=40, first_night=40),
        "moved": window_of_nights(rng, n_nights=1, episodes_per_night=40, first_night=40, shift=1.5),
    }
    files = {name: tmp_path / f"{name}.parquet" for name in windows}
    for name, window in windows.items():
        write_window(window, files[name])

    for live, drifted in (("same", set()), ("moved", {"x0"})):
        code, out, err = asked(
            str(files["before"]), str(files[live]), "--night", "date", "--cluster", "episode", "--json"
        )
        assert code == 0, err
        found = json.loads(out)
        assert found["basis"].startswith(unit)
        assert {column["name"] for column in found["columns"] if column["status"] == "drifted"} == drifted
        assert {"date", "episode"}.isdisjoint(column["name"] for column in found["columns"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--night", "date"], "the reference holds 1 clusters of 2 nights, and it takes 10 clusters or 14 nights"),
        (["--night", "day"], "a.parquet has no column day. Did you mean date?"),
        (["--night", "date", "--cluster", "x9"], "x9 is missing in 1 rows, and what they depend on is not known"),
        (["--cluster", "episode"], "--cluster wants --night too"),
        (["--night", "date", "--independent-rows"], "--independent-rows contradicts nights"),
    ],
)
def test_nights_that_cannot_tell_are_refused(options: list[str], message: str, tmp_path: Path) -> None:
    window = window_of_nights(np.random.default_rng(0), n_nights=2, episodes_per_night=5)
    values = np.where(np.arange(window.n_rows) == 3, np.nan, 1.0)
    x9 = pa.array(values, mask=np.isnan(values))
    for name, first in (("a", 0), ("b", 5)):
        dates = window.nights[window.episode_of_row] + first
        pq.write_table(
            pa.table({"x0": window.columns["x0"].values, "x9": x9, "date": dates}), tmp_path / f"{name}.parquet"
        )
    code, out, err = asked(str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet"), *options)
    assert message in " ".join((out + err).split())
    assert code == (0 if "takes 10 clusters" in message else 2 if message.startswith("--") else 1)


def test_nights_of_the_lake_are_compared_as_the_nightly_check_reads_them(fresh: Workspace, run: Run) -> None:
    for night, traffic in ((1, 1.0), (2, 1.0), (3, 1.5)):
        stages.simulate(fresh, night=night, n_episodes=30, traffic=traffic)
    stages.ingest(fresh)
    lake = fresh.open_lake()
    replay = read_episodes(lake, fresh.config.snapshot, as_of=fresh.as_of(lake))
    assert replay is not None
    nights = np.unique(replay.nights)
    windows = [window_from_replay(replay.subset(np.isin(replay.nights, kept))) for kept in (nights[:2], nights[2:])]

    answer = run(fresh, "drift", "compare", "--reference", f":{nights[1]}", "--live", f"{nights[2]}:", "--json")

    assert answer.code == 0, answer.err
    found = answer.json
    assert (found["reference_rows"], found["live_rows"]) == tuple(window.n_rows for window in windows)
    assert found["basis"].startswith("60 reference clusters, optimistic before 14 nights")
    columns = {column["name"]: column for column in found["columns"]}
    assert columns["observation.request_rate"]["status"] == "drifted"
    for name in ("observation.request_rate", "observation.cpu", "observation.zone", "action", "reward"):
        before, now = (window.columns[name] for window in windows)
        bins = column_bins(before, n_bins=fresh.config.drift.n_bins)
        counts = bins.counts(before)
        wanted = divergences(before, now, bins, counts / counts.sum(), None, floor=fresh.config.drift.floor)
        assert columns[name]["psi"] == pytest.approx(wanted["psi"], abs=1e-12), name

    shared = run(fresh, "drift", "compare", "--reference", f":{nights[1]}", "--live", f"{nights[1]}:")
    assert (shared.code, f"1 nights are on both sides, first {nights[1]}" in shared.err) == (1, True)
    nothing = run(fresh, "drift", "compare", "--reference", "2031-01-01", "--live", f"{nights[1]}:")
    assert (nothing.code, "nights 2031-01-01: " in nothing.err, "holds no row" in nothing.err) == (1, False, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("last week", "'last week' is no range of nights; write 2026-01-01:2026-01-14"),
        ("2026-01-14:2026-01-01", "The range of nights 2026-01-14:2026-01-01 ends before it begins"),
    ],
)
def test_what_is_no_range_of_nights_is_refused(text: str, message: str, fresh: Workspace, run: Run) -> None:
    answer = run(fresh, "drift", "compare", "--reference", text, "--live", "2026-02-01:")
    assert (answer.code, message in answer.err) == (1, True)


def test_a_column_that_is_no_date_is_named_with_a_value(tmp_path: Path) -> None:
    for name in ("a", "b"):
        pq.write_table(pa.table({"x": np.arange(40.0), "zone": ["north"] * 40}), tmp_path / f"{name}.parquet")
    code, _, said = asked(*(str(tmp_path / f"{name}.parquet") for name in ("a", "b")), "--night", "zone")
    assert code == 1
    assert "the column zone holds what is no date, such as 'north'" in " ".join(said.split())


def test_lists_that_neither_side_holds_and_where_a_row_came_from_are_left_out(tmp_path: Path) -> None:
    n = 60
    for name in ("a", "b"):
        columns = {
            "x": pa.array(np.arange(float(n))),
            "load": pa.array([None] * n, pa.list_(pa.float64())),
            "source": pa.array([f"{name}.jsonl"] * n),
            "source_line": pa.array(np.arange(n)),
            "batch_id": pa.array([name] * n),
            "policy_version": pa.array([name] * n),
        }
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
        pq.write_table(pa.table({"source": columns["source"]}), tmp_path / f"own-{name}.parquet")
    with duck() as connection:
        pair = pair_of(connection, *(files_relation(connection, str(tmp_path / f"{name}.parquet")) for name in "ab"))
        own = pair_of(connection, *(files_relation(connection, str(tmp_path / f"own-{name}.parquet")) for name in "ab"))
    assert list(pair.fields[0]) == ["x"]
    assert pair.left_out["load"] == "neither side holds a list in it"
    assert {name for name, why in pair.left_out.items() if "where a row came from" in why} == {
        "source", "source_line", "batch_id", "policy_version"
    }  # fmt: skip
    assert list(own.fields[0]) == ["source"]  # a column of the user's own


def test_an_empty_csv_file_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    (tmp_path / "b.csv").write_text("x\n1\n")
    code, _, said = asked(str(tmp_path / "a.csv"), str(tmp_path / "b.csv"))
    assert code == 1
    assert "a.csv is empty: it holds neither a head nor a row." in " ".join(said.split())

"""Exactly once: rows of a batch that the lake, or an earlier row of the batch, already holds."""

from __future__ import annotations

from itertools import islice
from pathlib import PurePath

import numpy as np
import pyarrow as pa

from datasets.duck import quoted
from datasets.identities import Identities, RepeatedHashes, identity_hash_sql, identity_sql, sorted_hashes
from datasets.lake import Lake
from datasets.staging import RawText, Stage
from datasets.tables import COLUMNS_FILE, scan_files, table_columns

_CHUNK_ROWS = 20_000


def take_out_repeats(stage: Stage, lake: Lake) -> int:
    """Takes out of the stage what is there already; returns how many duplicates there were.

    A row with the same identity and the same content is a duplicate: counted, not stored. One with the same identity
    and other content is a conflict: it goes to `bad`, and the row that came first stays.
    """
    connection = stage.connection
    history = _suspect(stage, lake)
    content = _content_sql(lake)
    before = (
        f"UNION ALL SELECT h, {identity_sql()}, -1, {content}, episode_id, decision_id, source, source_line "
        f"FROM {history}"
    )
    connection.execute(
        f"""CREATE OR REPLACE TABLE repeats AS
        SELECT ordinal, content, episode_id, decision_id, source, source_line,
            content = first_value(content) OVER same AS is_duplicate,
            first_value(source || ' line ' || source_line) OVER same AS original
        FROM (
            SELECT h, {identity_sql()} AS identity, ordinal, {content} AS content, episode_id, decision_id,
                source, source_line
            FROM (SELECT *, {identity_hash_sql()} AS h FROM {stage.kept_sql}) SEMI JOIN suspects USING (h)
            {before if history else ""}
        )
        WINDOW same AS (PARTITION BY identity ORDER BY ordinal)
        QUALIFY row_number() OVER same > 1 AND ordinal >= 0
        """
    )
    connection.execute(
        """INSERT INTO bad BY NAME SELECT content AS raw, source, source_line,
            'repeats the step in ' || original || ' with other content' AS reason, episode_id, decision_id
        FROM repeats WHERE NOT is_duplicate"""
    )
    stage.take_out("SELECT ordinal FROM repeats")
    _find_raw_text(stage)
    ((n_duplicates,),) = connection.execute("SELECT count(*) FROM repeats WHERE is_duplicate").fetchall()
    return int(n_duplicates)


def _suspect(stage: Stage, lake: Lake) -> str:
    """Fills `suspects` with hashes of identities that occur more than once; returns the relation of those rows of the
    lake that have one, "" where there is none."""
    connection = stage.connection
    repeated = RepeatedHashes()
    hits, days = Identities(lake).partitions_of(repeated.seen(sorted_hashes(connection, stage.kept_sql)))
    suspects = np.union1d(repeated.found, hits)
    connection.register("suspected", pa.table({"h": suspects}))
    connection.execute("CREATE OR REPLACE TABLE suspects AS SELECT h FROM suspected")
    connection.unregister("suspected")
    folders = {f"log_date={day}" for day in days}
    files = [f for f in lake.files("steps") if PurePath(f).parent.name in folders]
    if not files:
        return ""  # of rows that are no longer stored
    # Rows from before the contract grew have the new columns too, as nulls: else they would differ from their repeats.
    forms = [f for f in lake.files("steps") if PurePath(f).name.startswith(COLUMNS_FILE)]
    rows = f"(SELECT *, {identity_hash_sql()} AS h FROM {scan_files([*forms, *files], by_date=True)})"
    return f"(SELECT * FROM {rows} SEMI JOIN suspects USING (h))"


def _content_sql(lake: Lake) -> str:
    placed = {"source", "source_line", "batch_id", "log_date"}
    listed = ", ".join(f"{quoted(c)} := {quoted(c)}" for c in table_columns(lake.contract)["steps"] if c not in placed)
    return f"to_json(struct_pack({listed}))::VARCHAR"


def _find_raw_text(stage: Stage) -> None:
    """Replaces the canonical form of conflicting repeats by their raw text, where they came from text files."""
    conflicts = stage.connection.execute("SELECT ordinal FROM repeats WHERE NOT is_duplicate ORDER BY 1").fetchall()
    found = stage.raw_text(ordinal for (ordinal,) in conflicts)
    while texts := list(islice(found, _CHUNK_ROWS)):
        _replace_raw_text(stage, texts)


def _replace_raw_text(stage: Stage, texts: list[RawText]) -> None:
    types = {"source": pa.string(), "source_line": pa.int64(), "raw": pa.string(), "file_digest": pa.string()}
    types["header"] = pa.list_(pa.string())
    table = pa.table({name: pa.array([getattr(text, name) for text in texts], type_) for name, type_ in types.items()})
    stage.connection.register("raw_texts", table)
    stage.connection.execute(
        "UPDATE bad SET raw = t.raw, header = t.header, file_digest = t.file_digest FROM raw_texts t "
        "WHERE bad.source = t.source AND bad.source_line = t.source_line"
    )
    stage.connection.unregister("raw_texts")

"""Who was erased, remembered by hash alone, so that a log that brings them again is refused.

The hashes are HMAC-SHA-256 under a random key that lies beside them: without the values nobody can list the subjects,
but who has the lake and a guess can test it. Where the contract hashes the column, what is remembered is a hash of the
keyed hash, and cannot be guessed without the privacy key either.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pyarrow as pa

from datasets.contract import Contract
from datasets.durable import write_durably
from datasets.errors import OfflineDqnError
from datasets.lake import Lake
from datasets.privacy import HASHED, PrivacyKey, hmac_sql, install_key
from datasets.staging import Stage

EPISODE, DECISION, KEY = "episode", "decision", "key"

_FILE = "erased.json"
_NAME = "erased"


class ErasedError(OfflineDqnError):
    """What was erased cannot be read, so that nobody can say what must be refused."""


@dataclass(frozen=True)
class Erased:
    """The memory of a lake.

    Attributes:
        key: of the hashes.
        hashes: when each was erased (ISO), by hash, by kind (EPISODE, DECISION, KEY: a hashed column of a log).
    """

    key: PrivacyKey
    hashes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def holds(self, kind: str, value: str) -> bool:
        """Whether that episode, decision or key was erased; `value` as the lake has it."""
        return self.key.hash(value) in self.hashes.get(kind, {})


def read_erased(lake_root: Path) -> Erased:
    """What a lake remembers.

    Raises:
        ErasedError: the file is there and cannot be read.
    """
    path = lake_root / _FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Erased(PrivacyKey(bytes.fromhex(values["key"])), values["hashes"])
    except FileNotFoundError:
        return Erased(PrivacyKey(secrets.token_bytes(32)))
    except (ValueError, KeyError, TypeError) as error:
        raise ErasedError(
            f"{path} cannot be read, and without it nobody can say whose rows must be refused. Restore it from a "
            "backup."
        ) from error


def erased_changed_at(lake_root: Path) -> int:
    """When the memory last changed, in nanoseconds since 1970; 0 where nobody was ever erased."""
    try:
        return (lake_root / _FILE).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def remember_erased(lake_root: Path, values: Mapping[str, Iterable[str]], *, at: datetime) -> None:
    """Adds episodes, decisions and keys (as the lake has them) to the memory. The caller holds the lake's lock."""
    before = read_erased(lake_root)
    hashes = {kind: dict(known) for kind, known in before.hashes.items()}
    for kind, added in values.items():
        known = hashes.setdefault(kind, {})
        for value in added:
            known.setdefault(before.key.hash(value), at.isoformat())
    content = {"key": before.key.secret.hex(), "hashes": hashes}
    write_durably(lake_root / _FILE, json.dumps(content, indent=1))


def refuse_erased(stage: Stage, lake: Lake) -> int:
    """Takes rows of erased subjects out of the stage, their ordinals into the table `refused`; returns how many.

    A step belongs to an erased subject with its whole episode; an outcome by its decision. What cannot be parsed cannot
    be recognised: it is sealed, and purged in time.

    Raises:
        ErasedError: what was erased cannot be read.
    """
    erased = read_erased(lake.root)
    connection = stage.connection
    connection.execute("CREATE OR REPLACE TABLE refused (ordinal BIGINT)")
    if not any(erased.hashes.values()):
        return 0
    install_key(connection, erased.key, _NAME)
    pairs = [(kind, value) for kind, known in erased.hashes.items() for value in known]
    table = pa.table({"kind": [kind for kind, _ in pairs], "hash": [value for _, value in pairs]})
    connection.register("erased_hashes", table)
    try:
        connection.execute("CREATE OR REPLACE TEMP TABLE erased AS SELECT * FROM erased_hashes")
    finally:
        connection.unregister("erased_hashes")
    return _refuse(stage, lake.contract)


def _refuse(stage: Stage, contract: Contract) -> int:
    connection, rows = stage.connection, stage.rows_sql
    if stage.kind == "outcomes":
        gone = f"SELECT ordinal FROM {rows} SEMI JOIN ({_known(rows, 'decision_id', DECISION)}) USING (decision_id)"
    else:
        connection.execute(f"CREATE OR REPLACE TABLE erased_episodes AS {_episodes(contract, rows)}")
        gone = f"SELECT ordinal FROM {rows} SEMI JOIN erased_episodes USING (episode_id)"
    connection.execute(f"INSERT INTO refused {gone}")
    stage.take_out("SELECT ordinal FROM refused")
    ((n_bad,),) = connection.execute(f"DELETE FROM bad WHERE {_bad_is_erased(stage)}").fetchall()
    ((n_rows,),) = connection.execute("SELECT count(*) FROM refused").fetchall()
    return int(n_rows) + int(n_bad)


def _known(rows: str, value: str, kind: str, column: str = "") -> str:
    """Each value of a relation whose hash is remembered; `column` is selected in its place."""
    chosen = column or value
    distinct = f"SELECT DISTINCT {value} AS value, {chosen} FROM {rows} WHERE {value} IS NOT NULL"
    remembered = f"SELECT hash FROM erased WHERE kind = '{kind}'"
    return f"SELECT DISTINCT {chosen} FROM ({distinct}) WHERE {hmac_sql('value', _NAME)} IN ({remembered})"


def _episodes(contract: Contract, rows: str) -> str:
    """Episodes that were erased, or that hold a row of an erased key, good or bad."""
    by_key = [_known(rows, f'keys."{name}"', KEY, "episode_id") for name in contract.privacy.hash]
    bad = f"SELECT episode_id FROM bad WHERE episode_id IS NOT NULL AND {_text_is_erased()}"
    return " UNION ".join([_known(rows, "episode_id", EPISODE), *by_key, bad])


def _bad_is_erased(stage: Stage) -> str:
    if stage.kind == "outcomes":
        return f"decision_id IN ({_known('bad', 'decision_id', DECISION)}) OR {_text_is_erased()}"
    known = _known("bad", "episode_id", EPISODE)
    return f"episode_id IN (FROM erased_episodes) OR episode_id IN ({known}) OR {_text_is_erased()}"


def _text_is_erased() -> str:
    """Whether redacted raw text names an erased key."""
    hashes = f"regexp_extract_all(coalesce(raw, ''), '{HASHED}([0-9a-f]{{64}})', 1)"
    remembered = f"list_transform({hashes}, lambda value: {hmac_sql('value', _NAME)})"
    return f"list_has_any({remembered}, (SELECT coalesce(list(hash), []) FROM erased WHERE kind = '{KEY}'))"

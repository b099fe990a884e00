"""Signed logs: only bytes that bear the writer's signature are taken."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from datasets.logfiles import LogFileError, find_log_files
from datasets.signing import KEY_VARIABLE, MANIFEST, Signatures, SigningError, SigningKey, sign_logs, signing_key

KEY = SigningKey(b"s" * 32)
AT = datetime(2024, 5, 1, tzinfo=UTC)


def log_in(folder: Path, name: str = "a.jsonl", text: str = "{}\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def sign(*paths: Path, key: SigningKey = KEY) -> list[Path]:
    return sign_logs(find_log_files(paths), key, at=AT)


def problem(path: Path, key: SigningKey = KEY) -> str | None:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Signatures(key).problem(find_log_files([path])[0], digest)


def test_a_signed_file_is_taken_as_it_is(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    assert sign(tmp_path) == [tmp_path / MANIFEST]
    assert problem(log) is None


def test_each_folder_has_its_own_manifest_and_none_is_read_as_a_log(tmp_path: Path) -> None:
    logs = [log_in(tmp_path / "a"), log_in(tmp_path / "b")]
    assert sign(tmp_path) == [tmp_path / "a" / MANIFEST, tmp_path / "b" / MANIFEST]
    assert [log.path for log in find_log_files([tmp_path])] == logs
    assert [problem(log) for log in logs] == [None, None]


def test_signing_one_more_file_keeps_the_others(tmp_path: Path) -> None:
    first = log_in(tmp_path)
    sign(first)
    second = log_in(tmp_path, "b.jsonl")
    sign(second)
    assert [problem(first), problem(second)] == [None, None]


def test_an_unsigned_file_is_refused(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    assert f"there is no manifest {tmp_path / MANIFEST}; `offline-dqn sign {tmp_path}`" in str(problem(log))
    sign(log)
    other = log_in(tmp_path, "b.jsonl")
    assert f"{other} is held: it is not signed" in str(problem(other))


def test_a_changed_or_grown_file_is_refused_until_it_is_signed_again(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    sign(log)
    log.write_text("{}\n{}\n")
    assert "it was changed, or has grown, since it was signed" in str(problem(log))
    sign(log)
    assert problem(log) is None


def test_a_signature_is_for_one_name(tmp_path: Path) -> None:
    sign(log_in(tmp_path))
    assert "it is not signed" in str(problem(log_in(tmp_path, "b.jsonl")))


def test_a_manifest_that_was_tampered_with_signs_nothing_and_is_not_signed_over(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    sign(log)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    log.write_text("{} \n")
    manifest["files"]["a.jsonl"]["sha256"] = hashlib.sha256(log.read_bytes()).hexdigest()
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    assert f"does not bear a signature of the key in {KEY_VARIABLE}" in str(problem(log))
    with pytest.raises(SigningError, match="Remove it and sign the logs anew"):
        sign(log)


def test_another_key_signs_nothing(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    sign(log, key=SigningKey(b"t" * 32))
    assert "or signed with another key" in str(problem(log))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"hmac": 1, "files": {}, "version": 1}', '{"hmac": "é", "files": {}, "version": 1}', "\x00"],
)
def test_what_is_no_manifest_signs_nothing(tmp_path: Path, text: str) -> None:
    log = log_in(tmp_path)
    (tmp_path / MANIFEST).write_text(text)
    assert "is no manifest of this version" in str(problem(log))


def test_the_key_must_be_there_and_long_enough_and_is_never_shown() -> None:
    with pytest.raises(SigningError, match=f"{KEY_VARIABLE} is not set"):
        signing_key({})
    with pytest.raises(SigningError, match="holds 6 bytes, and at least 32 are wanted"):
        signing_key({KEY_VARIABLE: "secret"})
    assert signing_key({KEY_VARIABLE: "s" * 32}) == KEY
    assert "sss" not in repr(KEY)


def test_a_path_without_logs_is_not_signed(tmp_path: Path) -> None:
    with pytest.raises(LogFileError, match="holds no log"):
        sign(tmp_path)

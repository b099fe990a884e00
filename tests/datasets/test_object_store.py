"""Objects on a real S3 server: conditional writes, listings, and errors that name the key, the cause and a remedy."""

from __future__ import annotations

import os
import pickle
import threading
import traceback
from pathlib import Path
from typing import Any

import pytest

from datasets.object_store import (
    ObjectMissingError,
    ObjectStore,
    ObjectStoreError,
    StoreUnreachableError,
    open_store,
)
from tests.object_store_server import BUCKET


@pytest.fixture
def store(bucket_address: str) -> ObjectStore:
    return open_store(bucket_address)


def test_an_object_is_read_as_it_was_written_and_is_listed_below_its_prefix(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(large := os.urandom(6 << 20))  # written in parts

    store.put("steps/log_date=2026-01-01/b 1.parquet", b"rows")
    store.put("steps/large", tmp_path / "large")
    store.under("steps").put("seen-from-below", b"")
    store.download("steps/large", tmp_path / "again")

    assert store.get("steps/log_date=2026-01-01/b 1.parquet") == b"rows"
    assert (tmp_path / "again").read_bytes() == large
    assert [(found.key, found.n_bytes) for found in store.list("steps")] == [
        ("steps/large", 6 << 20),
        ("steps/log_date=2026-01-01/b 1.parquet", 4),
        ("steps/seen-from-below", 0),
    ]
    assert [found.key for found in store.list("steps", after="steps/large")] == [
        "steps/log_date=2026-01-01/b 1.parquet",
        "steps/seen-from-below",
    ]
    assert store.list("step") == []  # a folder, not the beginning of a name


def test_of_many_who_write_under_a_free_key_one_is_told_that_it_did(store: ObjectStore) -> None:
    contents = [b"writer %d" % n for n in range(16)]

    told = _at_once([lambda content=content: store.put_if_absent("journal/1", content) for content in contents])

    assert sum(told) == 1
    assert store.get("journal/1") == contents[told.index(True)]


def test_of_many_who_write_over_the_same_content_one_is_told_that_it_did(store: ObjectStore) -> None:
    store.put("history", b"before")
    _, tag = store.get_tagged("history")
    contents = [b"writer %d" % n for n in range(16)]

    told = _at_once([lambda content=content: store.put_if_match("history", content, tag) for content in contents])

    assert sum(told) == 1
    assert store.get("history") == contents[told.index(True)]


def test_a_writer_whose_answer_was_lost_is_told_on_asking_again_that_it_wrote(store: ObjectStore) -> None:
    store.put("history", b"before")
    _, tag = store.get_tagged("history")

    assert [store.put_if_absent("journal/1", b"mine") for _ in range(2)] == [True, True]
    assert [store.put_if_match("history", b"mine", tag) for _ in range(2)] == [True, True]


def test_writing_over_a_deleted_object_fails_like_writing_over_a_changed_one(store: ObjectStore) -> None:
    store.put("lease", b"before")
    _, tag = store.get_tagged("lease")
    store.delete(["lease"])

    assert not store.put_if_match("lease", b"mine", tag)
    assert store.find("lease") is None


def test_deleting_what_is_not_there_is_no_error(store: ObjectStore) -> None:
    store.put("a", b"")
    store.delete(["a", "never there"])
    store.delete([])

    assert store.list() == []


def test_a_missing_object_is_named_and_leaves_no_half_file(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(ObjectMissingError, match=rf"Cannot read {store.address}/gone: there is no such object\."):
        store.download("gone", tmp_path / "gone")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/never is gone"):
        store.put("x", tmp_path / "never")


ASKED = {
    "read": lambda store: store.get("key"),
    "look for": lambda store: store.find("key"),
    "write": lambda store: store.put("key", b""),
    "write if absent": lambda store: store.put_if_absent("key", b""),
    "write if it matches": lambda store: store.put_if_match("key", b"", '"tag"'),
    "list": lambda store: store.list("key"),
    "delete": lambda store: store.delete(["key"]),
}
"""Every request there is, by its verb."""


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
@pytest.mark.usefixtures("bucket_address")
def test_a_bucket_that_is_not_there_is_said_whatever_is_asked(ask: Any) -> None:
    with pytest.raises(
        ObjectStoreError, match=r"s3://no-such-bucket.*NoSuchBucket\. Make the bucket, or correct"
    ) as told:
        ask(open_store("s3://no-such-bucket/lake"))
    assert not isinstance(told.value, ObjectMissingError)


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_a_store_that_does_not_answer_is_told_from_one_that_refuses(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _set_environment(monkeypatch, AWS_ENDPOINT_URL="http://127.0.0.1:9")

    with pytest.raises(
        StoreUnreachableError, match=rf"s3://{BUCKET}/lake.*store at http://127.0.0.1:9 does not answer"
    ):
        ask(open_store(f"s3://{BUCKET}/lake", patience_s=0.2))


def test_a_store_is_sent_to_another_process_without_its_keys(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("key", b"content")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-this-machine")
    sent = pickle.dumps(open_store(store.address))

    assert pickle.loads(sent).get("key") == b"content"
    assert b"secret" not in sent


def test_without_keys_the_variables_to_set_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _set_environment(monkeypatch, AWS_ENDPOINT_URL="http://127.0.0.1:9")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")  # where a machine of Amazon asks who it is

    with pytest.raises(
        ObjectStoreError, match=r"there are no credentials.*AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    ):
        open_store(f"s3://{BUCKET}/lake", patience_s=0.2).get("key")


@pytest.mark.parametrize(
    ("endpoint", "allowed"),
    [
        ("http://store.example:9000", False),
        ("http://10.0.0.7:9000", False),
        ("http://127.0.0.1.store.example", False),
        ("https://store.example:9000", True),
        ("http://localhost:9000", True),
        ("http://[::1]:9000", True),
    ],
)
def test_rows_travel_readably_within_this_machine_only(
    endpoint: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _set_environment(monkeypatch, AWS_ENDPOINT_URL=endpoint)

    if allowed:
        open_store("s3://bucket")
    else:
        with pytest.raises(
            ObjectStoreError, match=f"{endpoint}, where rows would travel readably.*AWS_ALLOW_HTTP=true"
        ):
            open_store("s3://bucket")
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
        open_store("s3://bucket")


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("http://ada:hunter2@store.example:9000", "holds a user or a password"),
        ("https://ada:hunter2@store.example", "holds a user or a password"),
        ("https://ada:hunter2#@store.example", "holds a user or a password"),
        ("ada:hunter2@store.example", "holds a user or a password"),
        ("https://ada:hunter2@[store.example", "holds no address that can be read"),
        ("https://ada:hunter2\u2100@store.example", "holds no address that can be read"),
        ("http://store.example", "is http://store.example, where rows would travel readably"),
    ],
)
def test_an_endpoint_is_refused_by_the_name_of_its_variable_and_no_login_is_shown(
    variable: str, endpoint: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"AWS_ENDPOINT_URL": "https://other.example"} if variable != "AWS_ENDPOINT_URL" else {}
    _set_environment(monkeypatch, **other, **{variable: endpoint})

    with pytest.raises(ObjectStoreError, match=f" cannot be opened: {variable} {said}") as told:
        open_store("s3://bucket")
    assert "hunter2" not in "".join(traceback.format_exception(told.value))


def test_a_store_that_keeps_conditions_passes_and_is_left_as_it_was(store: ObjectStore) -> None:
    store.check_conditions()

    assert store.list() == []


@pytest.mark.parametrize("ignored", ["create", "match"])
def test_a_store_that_passes_over_conditions_is_refused(store: ObjectStore, ignored: str) -> None:
    client = _Forgetful(store._client, ignored)

    with pytest.raises(ObjectStoreError, match=f"{store.address} passes over the conditions of a write"):
        ObjectStore(store.address, client).check_conditions()
    assert store.list() == []


class _Forgetful:
    """A client whose server does not know one kind of condition."""

    def __init__(self, client: Any, ignored: str) -> None:
        self.client, self.ignored = client, ignored

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def put(self, key: str, content: bytes, *, mode: Any = "overwrite", **options: Any) -> Any:
        kind = "create" if mode == "create" else "match"
        return self.client.put(key, content, mode="overwrite" if kind == self.ignored else mode, **options)


def _set_environment(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests-secret", "AWS_REGION": "us-east-1"}
    for name, value in {**keys, **variables}.items():
        monkeypatch.setenv(name, value)


def _at_once(calls: list[Any]) -> list[bool]:
    """What each call returned, all of them started together."""
    together, told = threading.Barrier(len(calls)), [False] * len(calls)

    def run(n: int) -> None:
        together.wait()
        told[n] = calls[n]()

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told

"""Releases in a bucket: what one machine decides all see, two at once never both win, altered bytes never act."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from datasets.bucket_folder import WrongBucketError, follow_bucket
from datasets.durable import write_durably
from datasets.object_store import ObjectStore, open_store
from reports.gate import GateConfig
from reports.history import Promotion
from reports.ledger import ErrorSpentError, Ledger, Terms
from reports.registry import Registry, RegistryError, StaleDecisionError
from reports.release_bucket import mend_release, records_in, sweep_uploads
from reports.release_records import OvertakenError, RecordsError, decide, seen_lines
from tests.reports.two_machines import AT, add_release, machine


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: making one takes seconds, copying it does not."""
    path = tmp_path_factory.mktemp("mlflow")
    Registry(path / "mlflow.db", path / "releases", "autoscaler").releases()
    return path / "mlflow.db"


@pytest.fixture
def store(bucket_address: str) -> ObjectStore:
    return open_store(bucket_address)


@pytest.fixture
def pair(tmp_path: Path, database: Path, bucket_address: str) -> tuple[Registry, Registry]:
    first, second = (machine(tmp_path / name, database, bucket_address) for name in ("first", "second"))
    return first, second


def at_once(*acts: Callable[[], object]) -> list[object]:
    """What each returns or raises, begun at the same moment."""
    found: list[object] = [None] * len(acts)
    start = threading.Barrier(len(acts))

    def run(i: int) -> None:
        start.wait()
        try:
            found[i] = acts[i]()
        except Exception as error:
            found[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_what_one_machine_registers_judges_and_promotes_the_other_sees(pair: tuple[Registry, Registry]) -> None:
    first, second = pair
    add_release(first, "baseline", "rules")
    assert add_release(second, "not evaluated", "weights") == 1
    first.record_evaluation(1, gate="passed", files={"report.html": b"found"}, tags={"judged_against": "none"})
    second.promote(1, reviewer="Ada", at=AT)
    third = second.reject(add_release(first), reviewer="Grace", note="too thirsty", at=AT)
    for registry in pair:
        records = registry.releases()
        assert [(r.number, r.gate, r.intact, r.aliases) for r in records] == [
            (0, "baseline", True, ()),
            (1, "passed", True, ("champion",)),
            (2, "passed", True, ("candidate",)),
        ]
        assert registry.path(1).joinpath("policy.json").read_text() == "weights"
        assert registry.path(1).joinpath("report.html").read_bytes() == b"found"
        assert registry.rejections() == [third]
    first.rollback(0, reviewer="Grace", at=AT)
    second.releases()
    assert [p.to_release for p in second.history()] == [1, 0]


def test_of_two_machines_that_promote_at_once_one_wins_and_the_other_is_told_who(
    pair: tuple[Registry, Registry],
) -> None:
    first, second = pair
    for content in ("a", "b"):
        add_release(first, "passed", content, against="none")
    found = at_once(lambda: first.promote(1, reviewer="Ada"), lambda: second.promote(2, reviewer="Grace"))
    lost = [each for each in found if isinstance(each, StaleDecisionError)]
    assert len(lost) == 1
    winner = "Ada" if found.index(lost[0]) == 1 else "Grace"
    assert f"by {winner}" in str(lost[0])
    for registry in pair:
        registry.releases()
        assert [p.reviewer for p in registry.history()] == [winner]


def test_two_machines_that_roll_back_at_once_go_back_once(pair: tuple[Registry, Registry]) -> None:
    for content in ("a", "b", "c"):
        add_release(pair[0], "passed", content)
    for number in (1, 2, 3):
        pair[0].promote(number, reviewer="Ada")
    found = at_once(*(lambda each=each: each.rollback(2, reviewer="Grace") for each in pair))
    refused = [str(each) for each in found if isinstance(each, RegistryError)]
    assert len(refused) == 1
    assert "Release 2 is the champion already" in refused[0]
    for registry in pair:
        registry.releases()
        assert [p.to_release for p in registry.history()] == [1, 2, 3, 2]


def test_two_people_who_roll_back_one_champion_at_once_do_not_go_back_two(
    pair: tuple[Registry, Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair
    for content in ("a", "b", "c"):
        add_release(first, "passed", content)
    for number in (1, 2, 3):
        first.promote(number, reviewer="Ada")
    real = Registry._roll_back

    def overtaken(registry: Registry, *asked: Any) -> Promotion:
        if registry is second and len(first.history()) == 3:
            first.rollback(reviewer="Grace", at=AT)
        return real(registry, *asked)

    monkeypatch.setattr(Registry, "_roll_back", overtaken)
    with pytest.raises(
        RegistryError, match=r"began while release 3 was .* release 2 is the champion since .* by Grace"
    ):
        second.rollback(reviewer="Ada")
    assert [p.to_release for p in second.history()] == [1, 2, 3, 2]
    assert second.rollback(reviewer="Ada").to_release == 1


def test_machines_that_register_at_once_get_a_number_each(pair: tuple[Registry, Registry]) -> None:
    found = at_once(*(lambda each=each, i=i: add_release(each, "passed", f"{i}") for i, each in enumerate(pair * 2)))
    assert sorted(found, key=str) == [1, 2, 3, 4]
    contents = [sorted(r.path(n).joinpath("policy.json").read_text() for n in (1, 2, 3, 4)) for r in pair]
    assert contents == [["0", "1", "2", "3"]] * 2
    assert not list(pair[0].releases_path.glob(".staging-*"))


def test_the_year_pays_for_no_more_readings_than_it_can_however_many_machines_ask(
    pair: tuple[Registry, Registry],
) -> None:
    gate = GateConfig(alpha=0.05, yearly_error=0.1)  # two readings
    now = datetime(2024, 5, 1, tzinfo=UTC)

    def read(registry: Registry, candidate: str) -> object:
        terms = Terms(1, candidate, "snapshot", ("2024-05-01",), 100, gate.alpha, {}, {})
        return Ledger(registry.releases_path / "ledger.jsonl").begin(terms, gate, now, now=now).number

    found = at_once(*(lambda i=i: read(pair[i % 2], f"candidate {i}") for i in range(4)))
    assert sorted(each for each in found if isinstance(each, int)) == [1, 2]
    assert sum(isinstance(each, ErrorSpentError) for each in found) == 2
    # The same terms are the same reading, whoever asks.
    again = [read(registry, f"candidate {found.index(1)}") for registry in pair]
    assert again == [1, 1]


def test_a_decision_is_taken_anew_when_somebody_was_faster(pair: tuple[Registry, Registry]) -> None:
    first, second = pair
    records = records_in(first.releases_path)
    seen = records.refresh()
    add_release(second)
    with pytest.raises(OvertakenError):
        records.append("lapses", {"n": 1}, seen)
    tries = []

    def act() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise OvertakenError("")
        return len(tries)

    assert decide(act) == 3


def test_an_answer_that_was_lost_is_not_taken_for_a_defeat(
    pair: tuple[Registry, Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair
    add_release(first)
    written = ObjectStore.put_if_match

    def lost(store: ObjectStore, key: str, content: bytes, tag: str) -> bool:
        """Writes, and somebody else appends behind it before the writer, who got no answer, asks again."""
        assert written(store, key, content, tag)
        monkeypatch.setattr(ObjectStore, "put_if_match", written)
        add_release(second)
        return False

    monkeypatch.setattr(ObjectStore, "put_if_match", lost)
    first.promote(1, reviewer="Ada")
    assert [p.reviewer for p in first.history()] == ["Ada"]


def test_an_upload_that_was_killed_is_no_release_and_is_swept(
    pair: tuple[Registry, Registry], store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("reports.release_records.SharedRecords.append", killed)
        with pytest.raises(KeyboardInterrupt):
            add_release(first)
    assert second.releases() == []
    assert len(store.list("1")) == 3
    assert add_release(second, content="whole") == 1
    assert sweep_uploads(second.releases_path) == 0  # it may still be on its way
    assert sweep_uploads(second.releases_path, datetime.now(UTC) + timedelta(days=2)) == 3
    assert first.path(1).joinpath("policy.json").read_text() == "whole"


def test_a_later_evaluation_takes_what_the_earlier_one_uploaded(
    pair: tuple[Registry, Registry], store: ObjectStore
) -> None:
    first, second = pair
    add_release(first, "not evaluated")
    first.record_evaluation(1, gate="refused", files={"evaluation.json": b"names e-1"})
    second.record_evaluation(1, gate="refused", files={"evaluation.json": b"names nobody"})
    held = [store.get(each.key) for each in store.list("1")]
    assert b"names nobody" in held
    assert b"names e-1" not in held
    assert first.path(1).joinpath("evaluation.json").read_bytes() == b"names nobody"


def test_altered_objects_never_become_a_release(pair: tuple[Registry, Registry], store: ObjectStore) -> None:
    first, second = pair
    add_release(first, content="good")
    policy = next(each.key for each in store.list("1") if each.key.endswith("policy.json"))
    store.put(policy, b"evil")
    with pytest.raises(Exception, match=rf"{policy} is not what was stored: its SHA-256 is"):
        second.releases()
    assert not (second.releases_path / "1").exists()
    store.put(policy, b"good")
    manifest = policy.replace("policy.json", "release.json")
    kept = store.get(manifest)
    store.put(manifest, kept.replace(b'"passed"', b'"refused"'))
    with pytest.raises(RecordsError, match=r"release\.json was altered: its digest is not the one that was entered"):
        second.releases()
    outside = json.loads(kept)
    outside["files"] = {"../../outside": "0" * 64}
    store.put(manifest, json.dumps(outside).encode())
    with pytest.raises(RecordsError, match="was altered"):
        second.releases()
    store.put(manifest, kept)
    assert second.path(1).joinpath("policy.json").read_text() == "good"


def test_a_copy_that_was_damaged_is_mended_from_the_bucket(pair: tuple[Registry, Registry]) -> None:
    first, second = pair
    add_release(first, content="good")
    path = second.path(1)
    path.joinpath("policy.json").write_text("evil")
    assert second.path(1).joinpath("policy.json").read_text() == "good"
    path.joinpath("training.json").unlink()
    second.promote(1, reviewer="Ada")
    assert path.joinpath("training.json").exists()


def test_a_damaged_release_is_mended_after_a_crash_between_the_copy_of_the_journal_and_its_mark(
    pair: tuple[Registry, Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair
    add_release(first, content="good")
    folder = second.path(1).parent
    first.promote(1, reviewer="Ada")

    def crash(path: Path, content: str | bytes) -> None:
        if path.name == ".journal.tag":
            raise KeyboardInterrupt
        write_durably(path, content)

    with monkeypatch.context() as patched:
        patched.setattr("reports.release_records.write_durably", crash)
        with pytest.raises(KeyboardInterrupt):
            second.releases()
    with pytest.raises(RecordsError, match="a crash cut off its renewal"):
        seen_lines(folder)
    (folder / "1" / "policy.json").write_text("evil")

    assert mend_release(folder, 1)
    assert (folder / "1" / "policy.json").read_text() == "good"
    assert second.champion() == 1


def test_a_journal_that_was_set_back_decides_nothing(pair: tuple[Registry, Registry], store: ObjectStore) -> None:
    first, _ = pair
    add_release(first)
    before = store.get("journal.jsonl")
    first.promote(1, reviewer="Ada")
    store.put("journal.jsonl", before)
    with pytest.raises(RecordsError, match="lacks decisions that this machine has seen"):
        first.rollback(0, reviewer="Ada")
    store.delete(["journal.jsonl"])
    with pytest.raises(RecordsError, match="lacks decisions that this machine has seen"):
        first.releases()
    store.put("journal.jsonl", b"no json\n")
    with pytest.raises(RecordsError, match="lacks decisions"):
        first.releases()


def _flipped(content: bytes) -> bytes:
    return content.replace(b"Ada", b"Eve")


def _without_last_line(content: bytes) -> bytes:
    return b"".join(content.splitlines(keepends=True)[:-1])


def _cut(content: bytes) -> bytes:
    return content[:-7]


@pytest.mark.parametrize("alter", [_flipped, _without_last_line, _cut])
def test_an_altered_copy_of_the_journal_is_fetched_again_and_never_written_over_the_bucket(
    pair: tuple[Registry, Registry], store: ObjectStore, alter: Callable[[bytes], bytes]
) -> None:
    first, _ = pair
    add_release(first)
    first.promote(1, reviewer="Ada")
    stood = store.get("journal.jsonl")
    copy = first.releases_path / ".journal.jsonl"
    copy.write_bytes(alter(copy.read_bytes()))
    with pytest.raises(
        RecordsError, match=r"journal\.jsonl is not what this machine has read .*`offline-dqn releases`"
    ):
        seen_lines(first.releases_path)

    records = records_in(first.releases_path)
    records.append("lapses", {"n": 1}, records.refresh())
    assert [p.reviewer for p in first.history()] == ["Ada"]
    assert store.get("journal.jsonl").startswith(stood)
    assert len(seen_lines(first.releases_path)) == len(stood.splitlines()) + 1


@pytest.mark.parametrize("name", [".journal.jsonl", ".journal.tag"])
@pytest.mark.parametrize("content", [b"", b"\xff", b'{"sha256": "0", "n_bytes": 1, "tag": ""}', None])
def test_a_copy_or_mark_that_is_broken_or_gone_accuses_no_bucket(
    pair: tuple[Registry, Registry], store: ObjectStore, name: str, content: bytes | None
) -> None:
    records = records_in(pair[0].releases_path)
    records.append("lapses", {"n": 1}, records.refresh())
    path = pair[0].releases_path / name
    path.unlink() if content is None else path.write_bytes(content)
    assert records.refresh().content == store.get("journal.jsonl")
    path.unlink() if content is None else path.write_bytes(content)
    store.put("journal.jsonl", b'{"record": "lapses", "line": {"n": 2}}\n')  # with what is left, this is found out
    with pytest.raises(RecordsError, match="lacks decisions that this machine has seen"):
        records.refresh()


def test_another_problem_or_another_kind_at_the_address_is_refused(tmp_path: Path, bucket_address: str) -> None:
    follow_bucket(tmp_path / "a", bucket_address, kind="releases", problem="autoscaler")
    with pytest.raises(WrongBucketError, match=r"holds releases of 'autoscaler' .*, not releases of 'pricing'"):
        follow_bucket(tmp_path / "b", bucket_address, kind="releases", problem="pricing")
    with pytest.raises(WrongBucketError, match=r"holds releases of 'autoscaler' .*, not snapshots of"):
        follow_bucket(tmp_path / "c", bucket_address, kind="snapshots", problem="autoscaler")


def test_a_damaged_mark_is_no_licence_to_decide_alone(pair: tuple[Registry, Registry]) -> None:
    first, _ = pair
    (first.releases_path / ".bucket.json").write_text("{")
    with pytest.raises(WrongBucketError, match="it is a copy, and fills again"):
        first.releases()


_PROMOTER = """
import sys
from pathlib import Path
from reports.registry import Registry, RegistryError
registry = Registry(Path(sys.argv[1]) / "mlflow.db", Path(sys.argv[1]) / "copy", "autoscaler")
sys.stdin.readline()
try:
    print(registry.promote(int(sys.argv[2]), reviewer=sys.argv[3]).to_release)
except RegistryError as error:
    print(error)
"""


def test_of_promotions_by_processes_of_two_machines_one_stands(pair: tuple[Registry, Registry]) -> None:
    first, second = pair
    for content in ("a", "b"):
        add_release(first, "passed", content, against="none")
    second.releases()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _PROMOTER, str(registry.releases_path.parent), str(number), who],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for registry, number, who in ((first, 1, "Ada"), (second, 2, "Grace"))
    ]
    said = [process.communicate("go\n", timeout=120)[0].strip() for process in started]
    won = [i for i, text in enumerate(said) if text in ("1", "2")]
    assert len(won) == 1
    assert "cannot be promoted: it was compared with the logging policy" in said[1 - won[0]]
    first.releases()
    assert [p.to_release for p in first.history()] == [won[0] + 1]

"""What each page takes for granted: the state its commands begin in, stand-ins, and what cannot be run.

A page that is not named here is run as it is, in a workspace whose first night is over and whose release 1 is champion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Needs:
    """What the test does for one page.

    Attributes:
        before: shell lines that run before the page's own, in the same shell.
        stands_for: a word on the page -> what is put in its place. `$(...)` is filled in by the shell.
        exits: a command as printed, without its comment -> the exit code that it ends with here, where that is not 0.
        not_run: a command as printed, without its comment, or the beginning of several -> why it is not run. That it
            exists, with all its options, is checked all the same.
        run_by: the test module that runs the page's commands itself, and reads them from the page.
    """

    before: tuple[str, ...] = ()
    stands_for: Mapping[str, str] = field(default_factory=dict)
    exits: Mapping[str, int] = field(default_factory=dict)
    not_run: Mapping[str, str] = field(default_factory=dict)
    run_by: str = ""


RUNBOOKS = ("capture", "disable", "poisoned-source", "postmortem", "re-evaluate", "reproduce", "rollback")
_MAKE_LOG = "python -m tests.docs.sample_logs"
_TESTS_SETTINGS = "sed -i 's/n_updates = .*/n_updates = 50/'"
_HELD = (
    "offline-dqn simulate --episodes 40",
    """sed -i '1~3s/"reward": *[-0-9.]*/"reward": 99/' "$(ls -t logs/steps/*.jsonl* | head -1)" """,
    "offline-dqn ingest",
)
"""Brings a batch that is held: a third of its rewards lies outside the contract's range."""
_HELD_BATCHES = """offline-dqn query --format csv "SELECT batch_id FROM batches WHERE status = 'held'\""""
_KEY = "$(python -c 'import secrets; print(secrets.token_hex(32))')"
_PORT = "$(python -c 'import socket; s = socket.socket(); s.bind((str(), 0)); print(s.getsockname()[1])')"

NEEDS: Mapping[str, Needs] = {
    "README.md": Needs(
        before=(
            f"{_MAKE_LOG} blank logs-of-mine/blank.jsonl",
            # This reader's editor leaves the contract as it is, which is what the log holds, and shortens the training.
            "printf '#!/bin/sh\\nsed -i \"s/^n_updates = .*/n_updates = 50/\" $(dirname $1)/offline_dqn.toml' > editor",
            "chmod +x editor; export EDITOR=$PWD/editor",
        ),
        stands_for={"/path/to/logs": "../logs-of-mine"},
        not_run={
            "offline-dqn nightly": "docs/first_night.md runs it",
            "offline-dqn promote": "docs/first_night.md runs it",
            "offline-dqn rollback": "docs/first_night.md runs it",
        },
    ),
    "docs/canary.md": Needs(
        before=("offline-dqn rollback",),  # so that version 0 is champion, and release 1 a candidate that passed
        stands_for={
            "canary start 3 --share": "canary start 1 --share",
            "offline-dqn canary start 3": "rm -r serving; offline-dqn canary start 1",
        },
        exits={"offline-dqn canary advance": 3},
    ),
    "docs/contract.md": Needs(
        before=(
            "offline-dqn init scaled; cd scaled",
            f"{_MAKE_LOG} scaled logs/steps/scaled.jsonl",
            """sed -i 's/^names = .*/bins = [0, 10, 50, 100]/; s/^safe = .*/safe = 20/' contract.toml""",
            "offline-dqn ingest",
        ),
    ),
    "docs/data.md": Needs(
        before=(
            *_HELD,
            *_HELD,
            f"BATCHES=($({_HELD_BATCHES} | tail -n +2))",
        ),
        stands_for={
            "show b-2026": "show ${BATCHES[0]}",
            "release b-2026": "release ${BATCHES[0]}",
            "reject b-2026": "reject ${BATCHES[1]}",
        },
    ),
    "docs/databases.md": Needs(
        not_run={
            "createdb": "wants a PostgreSQL server; tests/pipelines has one, and does the rest of the page with it"
        }
    ),
    "docs/drift.md": Needs(
        before=(
            "offline-dqn simulate; offline-dqn ingest",
            f"for ending in parquet csv; do for kind in before after; do {_MAKE_LOG} $kind $kind.$ending; done; done",
            f"{_MAKE_LOG} after after/1.parquet",
        ),
        stands_for={"2026-01-14": "2026-01-05", "2026-01-20": "2026-01-06"},
        not_run={
            "offline-dqn nightly": "docs/first_night.md runs it",
            "offline-dqn drift page --night": "docs/first_night.md runs it, where a night has left its record",
        },
    ),
    "docs/examples/bus_replacement/README.md": Needs(
        before=(f"{_MAKE_LOG} buses buses.csv; LOG=../buses.csv; ln -s $PROJECT/docs docs",),
        stands_for={"*.toml buses/": f"*.toml buses/; {_TESTS_SETTINGS} buses/offline_dqn.toml"},
        exits={"offline-dqn evaluate 1": 3},
    ),
    "docs/examples/open_bandit_men/README.md": Needs(
        before=(
            f"{_MAKE_LOG} impressions random_men.csv.gz; {_MAKE_LOG} impressions bts_men.csv.gz",
            "LOG=../random_men.csv.gz; ln -s $PROJECT/docs docs",
        ),
        stands_for={
            "*.toml bandit/": f"*.toml bandit/; {_TESTS_SETTINGS} bandit/offline_dqn.toml",
            "zcat ${v}": "zcat ../${v}",
        },
        exits={"offline-dqn evaluate 1": 3},
        not_run={"offline-dqn nightly": "docs/first_night.md runs it"},
    ),
    "docs/exclusions.md": Needs(
        before=("offline-dqn simulate; mv logs/steps/night-0002.jsonl logs/steps/host-b-1.jsonl; offline-dqn ingest",),
    ),
    "docs/faults.md": Needs(not_run={"offline-dqn drill": "minutes; tests/pipelines/test_drill.py runs a slice"}),
    "docs/first_night.md": Needs(
        # The workspace that the test begins in has a smaller night.
        stands_for={"--scenario autoscaler": "--scenario autoscaler; cp offline_dqn.toml first"},
        not_run={"make setup": "makes the environment that the tests run in"},
    ),
    "docs/own_log.md": Needs(
        before=("ln -s $PROJECT/docs docs",),
        stands_for={"*.toml coupons/": f"*.toml coupons/; {_TESTS_SETTINGS} coupons/offline_dqn.toml"},
        exits={"offline-dqn evaluate 1": 3},
    ),
    "docs/operating.md": Needs(stands_for={"/backups/": "$FILES/", "/srv/": "$FILES/"}),
    "docs/policies.md": Needs(stands_for={"compress 7": "compress 1 --updates 20"}),
    "docs/privacy.md": Needs(
        before=(
            "offline-dqn init private; cd private",
            f"{_MAKE_LOG} blank logs/steps/blank.jsonl",
            """printf '[privacy]\\ndrop = ["user_email"]\\nhash = ["user_id", "session.token"]\\n' >> contract.toml""",
        ),
        stands_for={
            "token_hex(32))')": "token_hex(32))'); offline-dqn ingest",
            "SIGNING_KEY=...": f"SIGNING_KEY={_KEY}",
        },
    ),
    "docs/report.md": Needs(before=("offline-dqn compress 1 --int8; offline-dqn evaluate 2",)),  # another release
    "docs/scaling.md": Needs(
        not_run={
            "offline-dqn store upload": "wants a bucket; tests/pipelines/test_shared_store.py has one",
            "offline-dqn store download": "wants a bucket; tests/pipelines/test_shared_store.py has one",
        },
    ),
    "docs/security.md": Needs(
        not_run={
            "offline-dqn scheduler": "runs until Ctrl-C; tests/pipelines/test_scheduler.py starts and ends one",
            "mlflow server": "a server of others, which runs until it is stopped",
        },
    ),
    "docs/serving.md": Needs(
        before=(
            f"PORT={_PORT}",
            r"sed -i -E 's/^# (\[outcomes\]|attribution|default)/\1/' contract.toml",
        ),
        stands_for={
            "--port 8080": "--port $PORT & until curl -fs localhost:$PORT/v1/ready; do sleep 0.1; done",
            "localhost:8080": "-f localhost:$PORT",
        },
    ),
    "docs/snapshots.md": Needs(
        before=("SNAPSHOT=$(ls snapshots | head -1)",),
        stands_for={"9f2c": "${SNAPSHOT:0:4}", "DATASET": "out"},
    ),
    "docs/training.md": Needs(
        not_run={
            "tensorboard": "a server of others, which runs until it is stopped",
            "mlflow ui": "a server of others, which runs until it is stopped",
            "torchrun": "tests/pipelines/test_train_distributed.py runs it",
        },
    ),
    **{f"docs/runbooks/{page}.md": Needs(run_by="tests/pipelines/test_runbooks.py") for page in RUNBOOKS},
    "docs/validation.md": Needs(
        before=(*_HELD,),
        stands_for={"BATCH": f"$({_HELD_BATCHES} | tail -1)"},
    ),
}

NOT_RUN: Mapping[str, str] = {
    "make nightly": "three nights at full size; docs/first_night.md runs the same commands",
    "make serve": "runs until Ctrl-C; tests/pipelines/test_scheduler.py starts and ends the same scheduler",
    "make incident": "minutes of a fleet, nights and trainings; tests/pipelines/test_incident_drill.py runs its parts",
    "make loop": "two simulated weeks; tests/pipelines/test_loop.py runs a slice",
    "make calibrate": "hours; tests/benchmarks runs a slice",
    "pip install": "would install",
    "duckdb": "DuckDB's own shell is no part of the installation",
}
"""Commands that no page's test runs, as in `Needs.not_run`."""

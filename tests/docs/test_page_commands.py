"""Every command of the README and of docs/ is run as it is printed, by bash, in a prepared workspace."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import bound
from tests.docs.forks import SOCKET, write_program
from tests.docs.needs import NEEDS, NOT_RUN, Needs
from tests.docs.pages import ROOT, Command, commands_on, name_of, pages

PAGES = {name_of(page): page for page in pages()}
TIMEOUT_S = 900.0


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a reader's shell, in which `offline-dqn` starts at once."""
    folder = tmp_path_factory.mktemp("program")
    write_program(folder / "bin")
    address = folder / "socket"
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")},
        "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder),
        "PREFECT_HOME": str(folder / "prefect"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "140",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "600",  # where the machine has much else to do
        SOCKET: str(address),
    }
    command = bound.command("tests.docs.forks", address)  # also where the tests are killed, it ends with them
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield environment
        process.terminate()


def run_page(commands: list[Command], needs: Needs, folder: Path, environment: dict[str, str]) -> list[str]:
    """Runs a page's commands in one shell that begins in `folder`; what went wrong, in words."""
    record = folder.parent / "record"
    record.mkdir()
    lines = [*needs.before, f"exec 9>{record}/codes"]
    for number, command in enumerate(commands):
        text = command.text
        for word, meant in needs.stands_for.items():
            text = text.replace(word, meant)
        lines += ["{", text, f"}} >{record}/{number}.out 2>{record}/{number}.err", f'echo "{number} $?" >&9']
    lines += ["kill $(jobs -p) 2>/dev/null", "wait", "exit 0"]
    script = record / "page.sh"
    script.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with (
        (record / "shell.log").open("w") as log,
        subprocess.Popen(
            ["bash", script],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as shell,
    ):
        try:
            shell.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            log.write(f"not done after {TIMEOUT_S:.0f} s\n")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)  # what a page left running
    codes_path = record / "codes"
    told = (record / "shell.log").read_text()[-2000:]
    if not codes_path.exists():
        return [f"what the page needs before its first command could not be done:\n{told}"]
    codes = dict(map(int, line.split()) for line in codes_path.read_text().splitlines())
    faults = []
    for number, command in enumerate(commands):
        wanted, found = needs.exits.get(command.bare, 0), codes.get(number)
        if found != wanted:
            out, err = (_read(record / f"{number}.{kind}") for kind in ("out", "err"))
            faults.append(f"line {command.line}: {command.bare}\nended with {found}, not {wanted}:\n{out}{err}{told}")
    return faults


def _read(path: Path) -> str:
    return path.read_text(errors="replace")[-2000:] if path.exists() else ""


def why_not_run(command: Command, needs: Needs) -> str | None:
    """The reason for which a command is not run, or None."""
    reasons = {**NOT_RUN, **needs.not_run}
    return next(
        (why for beginning, why in reasons.items() if re.match(rf"{re.escape(beginning)}(?!\w)", command.bare)), None
    )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] if "examples/" in name else [])
        for name, page in PAGES.items()
        if commands_on(page)
    ],
)
def test_every_command_of_the_page_runs(
    name: str,
    first_night: Path,
    tmp_path: Path,
    program: dict[str, str],
) -> None:
    needs = NEEDS.get(name, Needs())
    if needs.run_by:
        assert Path(name).stem in (ROOT / needs.run_by).read_text(encoding="utf-8")
        return
    commands = [command for command in commands_on(PAGES[name]) if why_not_run(command, needs) is None]
    folder = tmp_path / "workspace"
    shutil.copytree(first_night, folder)
    environment = {**program, "PROJECT": str(ROOT), "FILES": str(tmp_path)}

    faults = run_page(commands, needs, folder, environment)

    assert not faults, f"{name}\n\n" + "\n\n".join(faults)


def test_nothing_is_prepared_for_a_page_or_command_that_is_no_longer_there() -> None:
    for name, needs in NEEDS.items():
        assert name in PAGES, f"tests/docs/needs.py prepares {name}, which does not exist"
        commands = [command.bare for command in commands_on(PAGES[name])]
        for printed in (*needs.exits, *needs.not_run):
            assert any(each.startswith(printed) for each in commands), f"{name} has no command `{printed}`"
    everywhere = [command.bare for page in pages() for command in commands_on(page)]
    for printed in NOT_RUN:
        assert any(each.startswith(printed) for each in everywhere), f"no page has a command `{printed}`"

"""What every command shares: its options, how it opens a workspace, and how its expected failures end."""

from __future__ import annotations

import atexit
import contextlib
import functools
import getpass
import json
import os
import sys
import webbrowser
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar, cast

import typer

from datasets.errors import OfflineDqnError
from pipelines import console

if TYPE_CHECKING:  # the stages load torch and more; a command loads what it needs when it runs
    from pipelines.workspace import Workspace

FAILED, REFUSED = 1, 3
"""Exit codes: 0 done, 1 failed, 2 wrong usage (typer's own), 3 a negative verdict."""

WorkspaceOption = Annotated[Path, typer.Option("--workspace", "-w", help="Folder of the workspace.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
AsOfOption = Annotated[
    datetime | None,
    typer.Option("--as-of", help="Instant taken for now, in UTC.", formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
]
PathsArgument = Annotated[list[Path] | None, typer.Argument(help="Log files or folders.")]

_OUR_PACKAGES = frozenset({"datasets", "drift", "offline_dqn", "pipelines", "reports"})

F = TypeVar("F", bound=Callable[..., None])


def expected(function: F) -> F:
    """Turns expected failures into one message and exit code 1, never a traceback."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except OfflineDqnError as error:
            console.fail(str(error))
            raise typer.Exit(FAILED) from error
        except KeyboardInterrupt as error:
            console.fail("interrupted. Nothing half-done was kept; the same command goes on from there.")
            raise typer.Exit(130) from error
        except BrokenPipeError:
            raise  # the reader of our output has gone, which typer ends quietly
        except OSError as error:
            console.fail(
                f"{error.filename or 'A file'} could not be used: {error.strerror or error}. Check space and "
                "permissions there, then run the command again; what was committed stays."
            )
            raise typer.Exit(FAILED) from error
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] in _OUR_PACKAGES:
                raise
            console.fail(
                f"This command needs '{error.name}', which serving, querying and acting do without. Install the rest, "
                'in the project\'s folder: pip install ".[pipeline]"'
            )
            raise typer.Exit(FAILED) from error
        except Exception as error:
            if str(error) == "Query interrupted":  # what DuckDB makes of a Ctrl-C
                console.fail("interrupted. Nothing half-done was kept; the same command goes on from there.")
                raise typer.Exit(130) from error
            if not _is_unreadable(error):
                raise
            console.fail(
                f"A file of the workspace cannot be read: {_first_line(error)}. Restore it from a backup; what is "
                "derived (lake.duckdb, checkpoints, .prefect) may be deleted, and is made anew."
            )
            raise typer.Exit(FAILED) from error

    return cast(F, wrapped)


def command(target: typer.Typer, name: str) -> Callable[[F], F]:
    """Registers a command whose expected failures are one message and exit code 1, never a traceback."""

    def register(function: F) -> F:
        target.command(name)(expected(function))
        return function

    return register


def _is_unreadable(error: Exception) -> bool:
    """Whether DuckDB, Delta, SQLite or JSON could not read a file. By module: to import them for that alone is slow."""
    unreadable = {"_duckdb", "duckdb", "sqlalchemy"}
    return isinstance(error, json.JSONDecodeError) or type(error).__module__.split(".")[0] in unreadable


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].removesuffix(".")


def open_workspace_of(workspace: Path, as_of: datetime | None = None, *, follow: bool = True) -> Workspace:
    """As `open_workspace`; `follow=False` for what must work while a bucket is away."""
    from pipelines.workspace import open_workspace

    if as_of is not None and as_of.tzinfo is None:
        as_of = as_of.replace(tzinfo=UTC)
    return open_workspace(workspace, as_of, follow=follow)


def open_in_browser(path: Path) -> bool:
    """Whether a browser was told to show the file; without a display there is none to tell."""
    displays = sys.platform in ("darwin", "win32") or any(os.environ.get(v) for v in ("DISPLAY", "WAYLAND_DISPLAY"))
    return displays and webbrowser.open(path.as_uri())


def user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return f"user {os.getuid()}"


def run_to_exit(app: typer.Typer, **options: Any) -> NoReturn:
    """Runs a command line and ends the process with its exit code, once what is registered for its end has run.

    An interpreter that is taken down while an exception still holds a DuckDB connection prints a page of "leaked"
    warnings behind our message, and the threads of a process group may abort it; the operating system takes everything
    back without a word.
    """
    code: int | str | None = 0
    try:
        app(**options)
    except SystemExit as end:
        code = end.code
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else int(bool(code)))

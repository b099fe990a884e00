"""Checks of requirements.lock for `make lint`: exact pins alone, and an environment that agrees with them.

    python -m tests.lock [LOCK]

It knows no advisories: those need the network, and `make audit` asks for them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions
from pathlib import Path

_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!]+)")


def canonical(name: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def problems(lines: Iterable[str], installed: Mapping[str, str]) -> list[str]:
    """What is wrong with a lock.

    Args:
        installed: version of each installed distribution, by canonical name.
    """
    found, pinned = [], dict[str, str]()
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        pin = _PIN.fullmatch(text)
        if pin is None:
            found.append(f"line {number}: {text!r} is no exact pin of a released version, name==version: no range, no "
                         "address, no option, no local build")  # fmt: skip
            continue
        name, version = canonical(pin[1]), pin[2]
        if name in pinned:
            found.append(f"line {number}: {name} is pinned twice")
        pinned[name] = version
        if installed.get(name, version).partition("+")[0] != version:
            found.append(
                f"line {number}: {name} is pinned at {version}, and {installed[name]} is installed: make setup"
            )
    return found


def main() -> None:
    """Prints what is wrong and exits with 1, or says nothing."""
    lock = Path(sys.argv[1] if len(sys.argv) > 1 else "requirements.lock")
    installed = {canonical(found.metadata["Name"]): found.version for found in distributions()}
    found = problems(lock.read_text(encoding="utf-8").splitlines(), installed)
    checked = subprocess.run([sys.executable, "-m", "pip", "check", "--disable-pip-version-check"],
                             capture_output=True, text=True, check=False)  # fmt: skip
    if checked.returncode:
        found += checked.stdout.strip().splitlines()
    if found:
        print(f"{lock}:", *found, sep="\n  ", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

"""Lines of the decision log: canonical steps, written as the contract says logs are: ingest needs no adapter."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pydantic_core

from datasets.contract import Contract, canonical_names
from datasets.errors import OfflineDqnError
from pipelines.serving.logged_times import read_time, written_time
from pipelines.serving.messages import key_names
from pipelines.serving.outcome import put


class LogFormatError(OfflineDqnError):
    """A contract under which a server could not write its log."""


class StepLines:
    """Turns decisions into lines.

    Raises:
        LogFormatError: the contract's time format does not hold an instant to the second.
    """

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        check_time_format(contract)
        self._is_binned = contract.actions.bins is not None
        self._places = {name: _place(contract, name) for name in canonical_names(contract)}
        self._places |= {f"keys.{name}": tuple(name.split(".")) for name in key_names(contract)}
        if contract.episodes.cluster is not None:
            self._places["cluster"] = tuple(contract.episodes.cluster.split("."))
        self._is_plain = all(place == tuple(name.split(".")) for name, place in self._places.items())

    def line(self, step: Mapping[str, Any], observation: Mapping[str, Any], at: datetime, action: str) -> bytes:
        """One line, without its end.

        Args:
            step: canonical columns but these three; None is left out.
            observation: as it was seen.
            at: when it was decided.
            action: the label; where actions are bins its number is written.
        """
        written = {name: value for name, value in step.items() if value is not None}
        written["timestamp"] = written_time(self._contract, at)
        written["action"] = self._contract.actions.value_of(action) if self._is_binned else action
        if self._is_plain:
            written["observation"] = observation
            return pydantic_core.to_json(written)
        placed: dict[str, Any] = {}
        for name, value in written.items():
            put(placed, self._places[name], value)
        for name, value in observation.items():
            put(placed, self._places[f"observation.{name}"], value)
        return pydantic_core.to_json(placed)


def check_time_format(contract: Contract) -> None:
    """Raises a LogFormatError where the contract's time format loses more than a fraction of a second."""
    instant = datetime(2001, 2, 3, 16, 5, 6, tzinfo=UTC)
    form = contract.time.format
    if "%" in form:
        is_ambiguous = contract.time.zone not in (None, "UTC") and "%z" not in form  # an hour comes twice in autumn
        if is_ambiguous or read_time(contract, written_time(contract, instant)) != instant:
            raise LogFormatError(
                f"time.format = '{form}' (zone {contract.time.zone or 'none'}) does not tell when a decision was made "
                "to the second in UTC, and the server writes its log as the contract says. Serve under a contract with "
                'format = "iso", or one of epoch_s and epoch_ms.'
            )


def _place(contract: Contract, canonical: str) -> tuple[str, ...]:
    return tuple(contract.log_paths(canonical)[0].split("."))

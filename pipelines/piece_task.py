"""A piece of a stage as a task of the flow that the stage belongs to."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.settings import PREFECT_API_URL

from pipelines.pieces import Done, Piece, work_out, work_out_packed

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def workers_reach_server(address: str | None) -> bool:
    """Whether workers can tell Prefect's server of what they do: not from another machine where it is on loopback.

    Their pieces are then no task runs of the flow, and nothing else changes.
    """
    on_loopback = urlsplit(PREFECT_API_URL.value() or "").hostname in _LOOPBACK
    return address is None or urlsplit(address).hostname in _LOOPBACK or not on_loopback


@task(name="piece", cache_policy=NO_CACHE, persist_result=False)
def piece_task(piece: Piece) -> Any:
    """In a thread of the flow's process."""
    return work_out(piece)


@task(name="piece", cache_policy=NO_CACHE, persist_result=False)
def packed_piece_task(function: bytes | str, item: bytes, name: str) -> Done:
    """In another process."""
    return work_out_packed(function, item, name)

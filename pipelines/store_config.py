"""`[store]`: where lake, snapshots and releases lie, each in a folder of the workspace or in an object store."""

from __future__ import annotations

from itertools import combinations
from pathlib import PurePosixPath
from typing import Self

from pydantic import field_validator, model_validator

from datasets.addresses import ObjectAddress, is_object_address, parse_address
from datasets.settings import Settings

_TAKEN = frozenset({"logs", "serving", "drift", "metrics", "notify", "checkpoints", "tensorboard"})
"""Folders of a workspace that hold other things."""


class StoreConfig(Settings):
    """A place is a folder inside the workspace, or an address such as `s3://bucket/prefix`.

    Endpoint, region and credentials of an object store come from the environment alone (AWS_ENDPOINT_URL, AWS_REGION,
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN), so this table may be shown to anybody.
    """

    lake: str = "lake"
    """The tables that ingest fills."""
    snapshots: str = "snapshots"
    """Frozen replay datasets."""
    releases: str = "releases"
    """Policies, what was found of them, and who promoted which."""

    @field_validator("lake", "snapshots", "releases")
    @classmethod
    def _is_place(cls, value: str) -> str:
        if is_object_address(value):
            return str(parse_address(value))
        _refuse_folder(value)
        return str(PurePosixPath(value))

    @model_validator(mode="after")
    def _are_apart(self) -> Self:
        lake = self.lake if self.lake_address is None else "lake"  # the folder of this machine's copy
        for (one, first), (other, second) in combinations((*self, ("the copy of the lake", lake)), 2):
            if {one, other} == {"lake", "the copy of the lake"}:
                continue
            if _within(first, second) or _within(second, first):
                raise ValueError(
                    f"{one} and {other} cannot share a place: '{first}' and '{second}' lie in one another. Give each a "
                    "folder or a prefix of its own."
                )
        return self

    @property
    def lake_address(self) -> ObjectAddress | None:
        """Of the lake; None where it is a folder."""
        return _address(self.lake)

    @property
    def snapshots_address(self) -> ObjectAddress | None:
        """Of the snapshots; None where they lie in a folder."""
        return _address(self.snapshots)

    @property
    def releases_address(self) -> ObjectAddress | None:
        """Of the releases; None where they lie in a folder."""
        return _address(self.releases)


def _address(place: str) -> ObjectAddress | None:
    return parse_address(place) if is_object_address(place) else None


def _refuse_folder(value: str) -> None:
    path = PurePosixPath(value)
    if not value or path.is_absolute() or ".." in path.parts or value.startswith("~") or "\0" in value:
        raise ValueError(
            'a folder is named relative to the workspace and lies inside it, such as "lake"; to keep it on another '
            "disk, mount that disk there, or name a bucket: s3://BUCKET/PREFIX"
        )
    if not path.parts or path.parts[0].startswith(".") or path.parts[0] in _TAKEN:
        raise ValueError(f"'{value}' holds something else in a workspace; choose a folder of its own")


def _within(inner: str, outer: str) -> bool:
    return f"{inner}/".startswith(f"{outer}/")

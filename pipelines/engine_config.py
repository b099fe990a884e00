"""`[engine]`: what works out the pieces into which stages can be cut."""

from __future__ import annotations

import os
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from datasets.settings import Settings


class EngineConfig(Settings):
    """Where folds, candidates and the like are worked out. It changes how long a night takes and no bit of what it
    finds."""

    kind: Literal["threads", "dask", "ray"] = "threads"
    """`threads` of this process, or processes that Dask or Ray runs (the extras `dask` and `ray`)."""
    workers: int | None = Field(None, ge=1, le=1024)
    """Pieces that are worked out at once; each wants memory of its own. null: one thread, which works out one piece
    after the other, and as many processes of Dask or Ray as there are CPUs. With an address, what is there decides."""
    address: str | None = None
    """Of a Dask scheduler ("tcp://10.0.0.5:8786") or a Ray cluster ("ray://10.0.0.5:10001") that runs already; null
    starts workers on this machine, on the loopback interface, and ends them with the command. The workers see this
    workspace under the same path, run the same code and have the same kind of processor."""

    @model_validator(mode="after")
    def _address_fits(self) -> EngineConfig:
        if self.address is None:
            return self
        if self.kind == "threads":
            raise ValueError('an address is for kind = "dask" or "ray"; threads are of this process')
        wanted = {"dask": ("tcp", "tls"), "ray": ("ray",)}[self.kind]
        try:
            found = urlsplit(self.address)
            is_whole = found.scheme in wanted and bool(found.hostname) and found.port is not None
        except ValueError:
            is_whole = False
        if not is_whole:
            raise ValueError(f"address wants the form {' or '.join(f'{scheme}://HOST:PORT' for scheme in wanted)}")
        if found.username is not None or found.password is not None:
            raise ValueError("address holds a user or a password, which a configuration must not")
        return self

    @property
    def is_spread(self) -> bool:
        """Whether pieces are worked out by anything but the stage itself, one after the other."""
        return self.kind != "threads" or self.n_local > 1

    @property
    def n_local(self) -> int:
        """Workers to start on this machine."""
        return self.workers or (1 if self.kind == "threads" else len(os.sched_getaffinity(0)))

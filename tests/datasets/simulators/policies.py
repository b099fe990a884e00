"""A better policy than the logged rule, written by hand for the tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.simulators.service import ZONE_SPEED, ServiceParameters


def size_by_request_rate(observations: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
    """Enough replicas for a load of 0.65, counting those that are starting and the speed of the zone."""
    replica_rate = ServiceParameters().replica_rate * ZONE_SPEED[observations["zone"]]
    wanted = observations["request_rate"] / (0.65 * replica_rate)
    total = observations["replicas"] + observations["pending"]
    return np.where(total < wanted - 0.5, 2, np.where(total > wanted + 0.5, 0, 1)).astype(np.int64)

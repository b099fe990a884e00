"""Who acts for an episode while a canary runs: a salted hash says it, of the episode or of the block of its start.

The hash knows nothing of the episode, so candidate and champion meet the same traffic; asked again, by whichever
process, it says the same; and what lies below a share lies below every larger one, so an episode that is in stays in.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def place_of(key: str, salt: str) -> float:
    """Where a key lies in [0, 1): evenly spread over keys, independent from salt to salt."""
    digest = hashlib.sha256(f"{salt}\x00{key}".encode()).digest()[:8]
    return (int.from_bytes(digest, "big") >> 11) / 2**53  # all of a float's bits, and never rounded up to 1


def assigned(episode_id: str, salt: str, share: float) -> bool:
    """Whether an episode is the candidate's, of which it gets `share` in [0, 1]."""
    return place_of(episode_id, salt) < share


def block_of(at: datetime, block_s: float) -> int:
    """Number of the block of time that holds an instant; blocks are counted from 1970 in UTC, so all agree on them."""
    return int((at - _EPOCH) / timedelta(seconds=block_s) // 1)


def block_start(block: int, block_s: float) -> datetime:
    """When a block begins."""
    return _EPOCH + timedelta(seconds=block * block_s)


def block_assigned(block: int, salt: str, share: float) -> bool:
    """Whether a block of time is the candidate's, for all the traffic, of which it gets `share` of the blocks."""
    return place_of(f"block {block}", salt) < share


def in_burn_in(at: datetime, block_s: float, burn_in_s: float) -> bool:
    """Whether an instant lies in the first `burn_in_s` seconds of its block, which still shows what acted before."""
    return (at - block_start(block_of(at, block_s), block_s)).total_seconds() < burn_in_s

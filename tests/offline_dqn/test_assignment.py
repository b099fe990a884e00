"""Assignment by hash: even, sticky, the same for whoever asks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from offline_dqn.assignment import assigned, block_assigned, block_of, block_start, in_burn_in, place_of

SHARES = st.floats(0, 1)


@given(st.text(), st.text(), SHARES, SHARES)
def test_an_episode_that_is_in_stays_in_at_every_larger_share(
    episode: str, salt: str, one: float, other: float
) -> None:
    small, large = sorted((one, other))
    assert assigned(episode, salt, large) or not assigned(episode, salt, small)
    assert not assigned(episode, salt, 0.0)
    assert assigned(episode, salt, 1.0)


def test_the_hash_is_even_and_independent_from_salt_to_salt() -> None:
    places = np.array([[place_of(f"e-{i}", salt) for salt in ("one", "two")] for i in range(20_000)])
    for share in (0.05, 0.2, 0.5):
        inside = places < share
        # Five standard errors of a share of 20,000.
        assert abs(inside[:, 0].mean() - share) < 5 * np.sqrt(share * (1 - share) / 20_000)
        assert abs(inside.all(axis=1).mean() - share**2) < 5 * np.sqrt(share**2 / 20_000)


def test_a_known_episode_keeps_its_place_in_every_version() -> None:
    # SHA-256 of "salt", a zero byte and "e-1": printf 'salt\0e-1' | sha256sum begins with these sixteen digits.
    assert place_of("e-1", "salt") == (int("f6b1446217728f83", 16) >> 11) / 2**53


def test_blocks_are_counted_from_1970_and_begin_where_they_say() -> None:
    at = datetime(2026, 1, 5, 13, 20, tzinfo=UTC)
    block = block_of(at, 3600)
    assert block_start(block, 3600) == datetime(2026, 1, 5, 13, tzinfo=UTC)
    assert block_of(block_start(block, 3600), 3600) == block
    assert block_of(block_start(block, 3600) - timedelta(microseconds=1), 3600) == block - 1
    assert in_burn_in(at, 3600, 20 * 60 + 1)
    assert not in_burn_in(at, 3600, 20 * 60)


def test_blocks_are_assigned_in_their_share() -> None:
    n = 20_000
    inside = np.array([block_assigned(b, "s", 0.3) for b in range(n)])
    assert abs(inside.mean() - 0.3) < 5 * np.sqrt(0.21 / n)
    assert abs((inside[1:] & inside[:-1]).mean() - 0.09) < 5 * np.sqrt(0.09 / n)  # neighbors know nothing of each other

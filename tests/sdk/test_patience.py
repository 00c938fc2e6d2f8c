"""A lost server is waited for; a request of hours may lose it any number of times."""

from __future__ import annotations

import pytest

from lorry.errors import ConnectionError
from lorry.sdk.patience import Patience
from lorry.timeouts import RECONNECT, STEADY


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_request_of_hours_survives_a_server_that_dies_again_and_again() -> None:
    clock = Clock()
    patience = Patience(clock)
    for _ in range(100):
        patience.asks()
        clock.now += STEADY + 1
        patience.lost()


def test_a_request_that_kills_each_server_is_given_up() -> None:
    clock = Clock()
    patience = Patience(clock)
    began = clock.now
    with pytest.raises(ConnectionError, match="did not come back in 60 s"):
        while True:
            patience.asks()
            clock.now += STEADY / 2
            patience.lost()
    assert RECONNECT < clock.now - began <= RECONNECT + 2 * STEADY


def test_after_a_long_rest_the_time_counts_anew() -> None:
    clock = Clock()
    patience = Patience(clock)
    patience.asks()
    patience.lost()
    clock.now += RECONNECT - 1
    patience.asks()
    clock.now += 3600
    patience.lost()
    clock.now += RECONNECT - 1
    patience.asks()
    patience.lost()

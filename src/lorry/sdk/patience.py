"""How long a client goes on asking a server that it loses."""

from __future__ import annotations

import time
from collections.abc import Callable

from lorry.errors import ConnectionError
from lorry.timeouts import RECONNECT, STEADY


class Patience:
    """For one request. A connection that lasted a while is a server that had come back: then the time counts anew, so
    that a call of hours survives any number of deaths. One that breaks at once may be a server that dies of the
    request itself."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked = 0.0
        self._deadline: float | None = None

    def asks(self) -> None:
        """The connection stands, and the request goes out."""
        self._asked = self._clock()

    def lost(self) -> None:
        """The connection broke before the answer. ConnectionError when that is enough."""
        now = self._clock()
        if self._deadline is None or now - self._asked > STEADY:
            self._deadline = now + RECONNECT
        if now > self._deadline:
            raise ConnectionError(f"the Lorry server was lost and did not come back in {RECONNECT:g} s") from None

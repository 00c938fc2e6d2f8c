"""What steps and saves take: measured in this attempt, and until then what the attempt before had measured."""

from __future__ import annotations

from collections import deque
from typing import Any

from lorry.train.policy import Costs, nearly_always

STEPS, SAVES, SHOWN = 200, 50, 50
EXIT_SECONDS = 0.5
"""From the last commit to the answer: the user's own clean-up, and the exception's way out. Nobody can measure it in
time; the grace of a slice is there for longer ones."""


class Pace:
    def __init__(self) -> None:
        self.steps: deque[float] = deque(maxlen=STEPS)
        """Seconds, without the first step of the attempt: that one warms up, and belongs to the start."""
        self.first: float | None = None
        """Seconds of the first step."""
        self.first_at: float | None = None
        """Monotonic; its end."""
        self.stall: float | None = None
        """Of the newest checkpoint."""
        self.persist: float | None = None
        self._stalls: deque[float] = deque(maxlen=SAVES)
        self._persists: deque[float] = deque(maxlen=SAVES)
        self._before: dict[str, float] = {}

    def saved(self, stall: float, persist: float) -> None:
        self.stall, self.persist = stall, persist
        self._stalls.append(stall)
        self._persists.append(persist)

    @property
    def knows_saves(self) -> bool:
        return self.stall is not None and self.persist is not None

    @property
    def mean_step(self) -> float:
        shown = list(self.steps)[-SHOWN:] or [self.first or 0.0]
        return sum(shown) / len(shown)

    @property
    def longest_step(self) -> float:
        """99 of 100 are shorter. Before there is one to go by, that of the attempt before; 0 if nobody knows."""
        return nearly_always(self.steps) or self._before.get("step", 0.0)

    def costs(self, start: float = 0.0) -> Costs:
        return Costs(
            start=start,
            step=self.longest_step,
            stall=max(nearly_always(self._stalls), self.stall or 0.0),
            persist=max(nearly_always(self._persists), self.persist or 0.0),
            exit=EXIT_SECONDS,
        )

    # In a checkpoint

    def state(self) -> dict[str, Any]:
        return {"step": self.longest_step or None, "persist": self.costs().persist or None}

    def load(self, state: dict[str, Any], stall: float) -> None:
        self._before = {name: value for name, value in state.items() if value is not None}
        self.stall, self.persist = stall, self._before.get("persist")

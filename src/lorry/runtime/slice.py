"""The slice of time that this process works in, when its function is resumable: what the runner and `lorry.run()` tell
each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lorry.model.function import ResumePolicy


@dataclass(slots=True)
class Slice:
    limit: float
    """Seconds."""
    began: float
    """Monotonic."""
    policy: ResumePolicy
    active: bool = False
    """A run has restored its state: from now on it ends at a safe point, instead of anywhere."""
    wanted: str | None = None
    """Why it has to end at the next safe point: "slice", "drain" or "cancel"."""
    yielded: str | None = None
    """Why it has ended at a safe point, with everything saved: set before YieldSlice is raised, so that the attempt
    counts as ended whatever the user's code makes of that."""
    at_end: Callable[[bool], None] | None = None
    """The run's, while it is active: to be called when user code has returned (True) or raised (False), before that is
    answered. It saves the last step."""

    def ask(self, reason: str) -> None:
        """A cancellation is not called off by what is asked after it."""
        if self.wanted != "cancel":
            self.wanted = reason

    def watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The user's function, whose end the run hears of before it is answered."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            try:
                value = function(*arguments, **keywords)
            except BaseException:
                self._ended(False)
                raise
            self._ended(True)
            return value

        return call

    def _ended(self, well: bool) -> None:
        if self.at_end is not None:
            self.at_end(well)


current: Slice | None = None

"""Which versions of functions are not forked, why, and until when. Forgotten with the worker."""

from __future__ import annotations

import math

MOST_FAILURES = 3
"""In a row. Each has cost a container the import in a template, and then its own."""
FORGIVEN_AFTER = 600.0
"""Seconds. Memory that was short for three attempts may be there again."""


class Refusals:
    """By a version's key."""

    def __init__(self) -> None:
        self._refused: dict[str, tuple[str, float]] = {}
        """Why, and until when."""
        self._failures: dict[str, tuple[int, float]] = {}
        """How many in a row, and when the last was noted."""

    def reason(self, key: str, now: float) -> str:
        """Empty if it may be forked."""
        reason, until = self._refused.get(key, ("", math.inf))
        if now < until:
            return reason
        del self._refused[key]
        self._failures.pop(key, None)
        return ""

    def refuse(self, key: str, reason: str) -> None:
        """It would be the same the next time."""
        self._refused[key] = reason, math.inf

    def failed(self, key: str, reason: str, began: float, now: float) -> bool:
        """What may go better the next time: a template was killed, a fork failed. True if that was once too often.

        `began`: when the attempt did. Attempts that were under way together fail together, of one cause, and count
        once.
        """
        count, noted = self._failures.get(key, (0, float("-inf")))
        if began > noted:
            self._failures[key] = (count + 1, now)
            if count + 1 >= MOST_FAILURES and not self.reason(key, now):
                again = f"{MOST_FAILURES} failures in a row; tried again {FORGIVEN_AFTER / 60:g} minutes after the last"
                self._refused[key] = f"{reason} ({again})", now + FORGIVEN_AFTER
        return bool(self.reason(key, now))

    def succeeded(self, key: str) -> None:
        self._failures.pop(key, None)

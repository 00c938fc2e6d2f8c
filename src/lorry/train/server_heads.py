"""The newest checkpoint of a run, as the server's database has it. For code inside a container of a resumable
function: which run it is, the server knows from the container's lease."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lorry.train.manifest import Head
from lorry.wire.codec import from_plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What became of the attempts before this one, for those who know more than the tokens tell."""

    attempt: int
    """Number of this one; the first is 1."""
    interruptions: int
    """Attempts that ended where nobody had planned it."""
    seconds: float
    """That they trained."""


class Ask(Protocol):
    def __call__(self, method: str, params: dict[str, Any]) -> Any:
        """The server's answer; asked again while the server is restarted. Its errors are raised by their names."""
        ...


class ServerHeads:
    """`Heads` of one attempt, which begins with the object. A server that is lost in the middle of a request is asked
    again: `run_begin` then gives a larger token, which is as good, and a commit that was made succeeds again."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        begun = ask("run_begin", {})
        self.run_id: str = begun["run_id"]
        self.folder = Path(begun["folder"])
        self.past = Past(
            attempt=begun["attempt"], interruptions=begun["interruptions"], seconds=float(begun["seconds"])
        )
        self._token: int = begun["token"]
        self._head = None if begun["head"] is None else from_plain(Head, begun["head"])

    def begin(self) -> int:
        return self._token

    def head(self) -> Head | None:
        return self._head

    def commit(self, head: Head) -> None:
        request = {"run_id": self.run_id, "token": head.token, "manifest": head.manifest, "step": head.step}
        self._ask("run_commit", request)
        self._head = head


class OneConnection:
    """An `Ask` for several threads: one connection to the server, one request at a time."""

    def __init__(self) -> None:
        from lorry.sdk.channel import Channel

        self._channel = Channel()
        self._turn = threading.Lock()

    def __call__(self, method: str, params: dict[str, Any]) -> Any:
        with self._turn:
            return self._channel.ask(method, params)

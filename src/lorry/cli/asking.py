"""Questions to the server, by commands that look and commands that act."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from lorry import config, errors
from lorry.sdk.channel import Channel


def act(method: str, **params: Any) -> Any:
    """Ask; a server is started if there is none."""
    return _ask(Channel(), method, params)


def look(method: str, **params: Any) -> Any:
    """Ask without making anything: NoState where there is neither a server nor what one has kept."""
    state = config.resolve().state_dir / "lorry.db"
    try:
        return _ask(Channel(may_start=state.exists()), method, params)
    except errors.ConnectionError:
        if state.exists():
            raise
        raise NoState from None


class NoState(Exception):
    """No server runs, and none ever ran with this state directory."""


def _ask(channel: Channel, method: str, params: dict[str, Any]) -> Any:
    try:
        return channel.ask(method, params)
    finally:
        channel.close()


def running() -> dict[str, Any] | None:
    """The server's status; None when none runs. Never starts one."""
    channel = Channel(may_start=False)
    try:
        return dict(channel.ask("server_status", {}))
    except errors.VersionError:
        raise
    except errors.ConnectionError:
        return None
    finally:
        channel.close()


def stream(method: str, params: dict[str, Any], on_event: Callable[[dict[str, Any]], None]) -> None:
    """A subscription, until an event has "end"."""
    ended = threading.Event()

    def event(value: dict[str, Any]) -> None:
        on_event(value)
        if "end" in value:
            ended.set()

    channel = Channel()
    try:
        channel.follow(method, params, event, ended, threading.Event())
    except ConnectionError:
        raise errors.ConnectionError("the server ended") from None
    finally:
        channel.close()

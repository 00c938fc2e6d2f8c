"""Questions of a test to its server, each on a connection of its own: the server may have been killed in between."""

from __future__ import annotations

import threading
from typing import Any

from lorry.sdk.channel import Channel


def ask(method: str, **params: object) -> dict[str, Any]:
    channel = Channel()
    try:
        return dict(channel.ask(method, params))
    finally:
        channel.close()


def log_lines(app_id: str) -> list[str]:
    """What its containers have printed so far."""
    found: list[str] = []
    ended = threading.Event()

    def take(event: dict[str, Any]) -> None:
        found.extend(row["x"] for row in event.get("lines", ()))
        if "end" in event:
            ended.set()

    channel = Channel()
    try:
        channel.follow("app_logs", {"app_id": app_id}, take, ended, threading.Event())
    finally:
        channel.close()
    return found

"""Deployed apps: versions, names, secrets that change, and what is found under a name."""

from __future__ import annotations

import calls
import named
from server_home import ServerHome, wait_until

import lorry
from lorry.sdk.channel import Channel


def ask(method: str, **params: object) -> dict:
    channel = Channel()
    try:
        return dict(channel.ask(method, params))
    finally:
        channel.close()


def logs(app_id: str) -> list[str]:
    import threading

    lines: list[str] = []
    ended = threading.Event()

    def take(event: dict) -> None:
        lines.extend(row["x"] for row in event.get("lines", ()))
        if "end" in event:
            ended.set()

    channel = Channel()
    try:
        channel.follow("app_logs", {"app_id": app_id}, take, ended, threading.Event())
    finally:
        channel.close()
    return lines


def test_a_changed_secret_is_seen_by_the_next_container_and_never_in_the_logs(own_server: ServerHome) -> None:
    ask("secret_put", name="hub", values={"HUB_TOKEN": "first-token"})
    named.app.deploy(name="named")
    function = lorry.Function.from_name("named", "token")
    assert function.remote() == "first-token"
    ask("secret_put", name="hub", values={"HUB_TOKEN": "second-token"})
    for container in ask("container_list")["containers"]:
        ask("container_stop", container_id=container["container_id"])
    wait_until(lambda: not ask("container_list")["containers"])
    assert function.remote() == "second-token"
    assert named.app.deployed_id is not None
    assert logs(named.app.deployed_id) == ["the token is ***", "the token is ***"]


def test_a_new_version_takes_over_and_the_old_one_ends(own_server: ServerHome) -> None:
    calls.app.deploy(name="versions")
    first = calls.app.deployed_id
    slow = lorry.Function.from_name("versions", "nap").spawn(1.0)
    calls.app.deploy(name="versions")
    assert slow.get(timeout=30) == "awake"
    running = [app["app_id"] for app in ask("app_list")["apps"]]
    wait_until(lambda: first not in [app["app_id"] for app in ask("app_list")["apps"]])
    assert calls.app.deployed_id in running
    assert lorry.Function.from_name("versions", "square").remote(3) == 9


def test_a_deployment_is_found_by_name_although_a_run_of_that_name_came_later(own_server: ServerHome) -> None:
    calls.app.deploy(name="calls")
    with calls.app.run():
        pass
    assert ask("app_lookup", app="calls")["app_id"] == calls.app.deployed_id

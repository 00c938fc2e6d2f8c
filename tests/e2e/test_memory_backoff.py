"""`Retries(memory_backoff=2.0)`: real memory bombs, and the containers that come after them."""

from __future__ import annotations

from collections.abc import Iterator

import memory
import pytest
from server_home import ServerHome, entered

import lorry
from lorry import exception
from lorry.sdk.channel import Channel


@pytest.fixture(scope="module")
def running(shared_home: ServerHome) -> Iterator[lorry.App]:
    with entered(shared_home), memory.app.run():
        yield memory.app


pytestmark = pytest.mark.usefixtures("running", "server")


def ask(method: str) -> dict[str, object]:
    channel = Channel()
    try:
        lines: list[str] = []
        answer = channel.ask(
            method,
            {"app_id": memory.app.app_id, "call": None},
            lambda event: lines.extend(row["x"] for row in event.get("lines", ())),
        )
        return {**answer, "lines": lines}
    finally:
        channel.close()


def test_an_input_over_the_limit_runs_again_with_more_and_its_function_keeps_that() -> None:
    assert memory.take.remote(200) == 200
    told = [line for line in ask("app_logs")["lines"] if "memory_backoff=2" in line]  # type: ignore[attr-defined]
    assert told == [
        "lorry: A container of take passed its memory limit of 120 MiB: the next ones get 240 MiB (memory_backoff=2)."
    ]
    assert memory.take.remote(190) == 190  # the same container, or one like it: no second line
    assert len([line for line in ask("app_logs")["lines"] if "of take passed" in line]) == 1  # type: ignore[attr-defined]


def test_the_last_error_names_every_limit_that_was_tried() -> None:
    with pytest.raises(exception.OutOfMemoryError, match=r"limit of 480 MiB.*tried 120, 240, 480 MiB.*max_retries=2"):
        memory.take_again.remote(700)


def test_an_enter_hook_that_needs_more_gets_more() -> None:
    assert memory.Model().size.remote() == 300

"""Templates ahead of the first call: in turn, and after containers that somebody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from fleet_bench import Bench

from lorry import errors
from lorry.server import warming
from lorry.server.container import Container


class FakeTemplates:
    """Enough of `Templates` to warm."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.ready: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.refused: set[int] = set()

    def warm(self, container: Container, _described: Any) -> asyncio.Future[dict[str, Any]] | None:
        self.begun.append(container.target)
        if container.target in self.refused:
            return None
        return self.ready.setdefault(container.target, asyncio.get_running_loop().create_future())


class Warm:
    def __init__(self, root: Path) -> None:
        self.bench, self.templates = Bench(root), FakeTemplates()
        self.folder = root / "containers"
        self.booting: Callable[[], bool] = lambda: False
        services = self.bench.fleet._s
        object.__setattr__(services, "templates", self.templates)
        self.warming = warming.Warming(services, lambda: self.booting())

    async def until(self, *begun: int) -> None:
        while self.templates.begun != list(begun):
            await asyncio.sleep(0.001)

    async def over(self) -> None:
        assert self.warming._task is not None
        await self.warming._task


def on(tmp_path: Path, test: Callable[[Warm], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        warm = Warm(tmp_path)
        await asyncio.wait_for(test(warm), 10)
        assert list(warm.folder.iterdir()) == []

    asyncio.run(main())


def test_templates_are_made_one_at_a_time(tmp_path: Path) -> None:
    async def test(warm: Warm) -> None:
        for target in (1, 2, 3):
            warm.warming.add("ap-1", target)
        await warm.until(1)
        warm.templates.ready[1].set_result({})
        await warm.until(1, 2)
        warm.templates.ready[2].set_exception(RuntimeError("it has threads"))
        await warm.until(1, 2, 3)
        warm.templates.ready[3].set_result({})
        await warm.over()
        warm.templates.ready[2].exception()

    on(tmp_path, test)


def test_one_that_takes_long_does_not_hold_back_the_others_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warming, "LONGEST", 0.01)

    async def test(warm: Warm) -> None:
        for target in (1, 2):
            warm.warming.add("ap-1", target)
        await warm.over()
        assert warm.templates.begun == [1, 2]

    on(tmp_path, test)


def test_containers_that_somebody_waits_for_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warming, "LOOK", 0.0)

    async def test(warm: Warm) -> None:
        seen: list[list[int]] = []

        def booting() -> bool:
            seen.append(list(warm.templates.begun))
            return len(seen) < 4

        warm.booting = booting
        warm.templates.refused.add(1)
        warm.warming.add("ap-1", 1)
        await warm.over()
        assert seen == [[], [], [], []]
        assert warm.templates.begun == [1]

    on(tmp_path, test)


def test_one_that_loads_for_minutes_is_passed_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warming, "PATIENCE", 0.01)
    monkeypatch.setattr(warming, "LOOK", 0.001)

    async def test(warm: Warm) -> None:
        warm.booting = lambda: True
        warm.templates.refused.add(1)
        warm.warming.add("ap-1", 1)
        await warm.over()
        assert warm.templates.begun == [1]

    on(tmp_path, test)


def test_a_function_that_is_gone_is_passed_over(tmp_path: Path) -> None:
    async def test(warm: Warm) -> None:
        def spec(target: int) -> Any:
            if target == 1:
                raise errors.NotFoundError("its app is stopped")
            return warm.bench.spec

        warm.bench.switch.spec = spec  # type: ignore[method-assign]
        warm.templates.refused.add(2)
        for target in (1, 2):
            warm.warming.add("ap-1", target)
        await warm.over()
        assert warm.templates.begun == [2]

    on(tmp_path, test)


def test_nothing_is_begun_any_more_when_the_server_ends(tmp_path: Path) -> None:
    async def test(warm: Warm) -> None:
        for target in (1, 2):
            warm.warming.add("ap-1", target)
        await warm.until(1)
        warm.warming.stop()
        with pytest.raises(asyncio.CancelledError):
            await warm.over()
        assert warm.templates.begun == [1]

    on(tmp_path, test)
